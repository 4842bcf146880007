"""Parse a tar file as its bytes arrive.

Formats: v7, POSIX ustar and pax (POSIX.1-2017, "pax"), GNU (long names, base-256 numbers).  Sparse files are refused.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from attrs import frozen

from k3dreg.formats.tar_header import BLOCK, ZEROS, EntryKind, Header, parse_header, parse_pax, pax_size
from k3dreg.formats.trailing_error import LONGEST_OBJECT, message_at_end, message_of
from k3dreg.oci.errors import ArchiveError

__all__ = ["EntryContent", "TarEntry", "EntryEnd", "EntryKind", "TarEvent", "TarReader"]

# Bytes of a long name or of pax records: the limit of Go's archive/tar, which Docker uses (`maxSpecialFileSize`).
LARGEST_EXTENSION = 1024 * 1024


@frozen
class TarEntry:
    """An entry begins.  `size`: the bytes of content that follow.

    `raw_name` and `raw_link` are the bytes in the archive, any but NUL.
    """

    raw_name: bytes
    size: int
    kind: EntryKind
    raw_link: bytes = b""
    mode: int = 0

    @property
    def name(self) -> str:
        """Return the name as text; bytes that are not UTF-8 become lone surrogates (PEP 383)."""
        return self.raw_name.decode("utf-8", "surrogateescape")

    @property
    def link(self) -> str:
        """Return the target of a link as text, as `name`."""
        return self.raw_link.decode("utf-8", "surrogateescape")


@frozen
class EntryContent:
    """The next bytes of the entry: a view into the bytes that were fed, not a copy."""

    data: memoryview


@frozen
class EntryEnd:
    """The entry has ended, after all bytes of its content."""


TarEvent = TarEntry | EntryContent | EntryEnd


class _State(enum.Enum):
    HEADER = enum.auto()
    EXTENSION = enum.auto()
    CONTENT = enum.auto()
    PADDING = enum.auto()
    AFTER_END = enum.auto()
    NO_TAR = enum.auto()  # text that begins like JSON is being collected
    FAILED = enum.auto()


_ENTRY_END = EntryEnd()


class TarReader:
    """A push parser: bytes go in, in pieces of any size, and entries and their content come out."""

    def __init__(self) -> None:
        self._state = _State.HEADER
        self._buffer = bytearray()
        self._left = BLOCK  # bytes until the state changes
        self._padding = 0  # bytes that follow the content
        self._shown = ""  # the name of the current entry, for messages
        self._tail = b""  # the end of the content so far, which is Docker's error message if the archive ends here
        self._zero_blocks = 0
        self._extension: Header | None = None
        self._long_name: bytes | None = None
        self._long_link: bytes | None = None
        self._pax: dict[bytes, bytes] = {}
        self._pax_global: dict[bytes, bytes] = {}

    @property
    def complete(self) -> bool:
        """Return whether the end-of-archive marker, two blocks of zeros, was read."""
        return self._state is _State.AFTER_END

    def feed(self, data: bytes | memoryview) -> Iterator[TarEvent]:
        """Parse the next bytes and yield their events.  The caller must iterate to the end before the next call.

        Raises `ArchiveError` if the bytes are no tar file.  Its text shows the bytes, or the message if they are an
        error of `docker save`.  The caller must not use the reader afterwards.
        """
        view = memoryview(data)
        at = 0
        while at < len(view):
            if self._state is _State.CONTENT:
                piece = view[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                ended = not self._left
                if ended:
                    self._expect(_State.PADDING, self._padding)
                else:
                    self._keep_tail(piece)
                yield EntryContent(piece)
                if ended:
                    yield _ENTRY_END
            elif self._state in (_State.HEADER, _State.EXTENSION):
                piece = view[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                self._buffer += piece
                if not self._left and (entry := self._collected()) is not None:
                    yield entry
                    if not entry.size:
                        yield _ENTRY_END
            else:
                at += self._skip(view[at:])

    def close(self) -> None:
        """Raise `ArchiveError` if the archive ended in the middle of an entry or with an error message of Docker.

        If it ended between two entries, only `complete` tells whether it is incomplete.
        """
        if self._state is _State.NO_TAR:
            raise self._glued()
        if self._state is _State.FAILED:
            raise ArchiveError("the archive is damaged")
        if self._state is _State.CONTENT:
            message = message_at_end(self._tail)
            said = f": Docker says: {message}" if message else ""
            raise self._failed(f"the archive ended in the middle of {self._shown}, {self._left} bytes early{said}")
        if self._state is _State.PADDING or self._state is _State.EXTENSION:
            raise self._failed(f"the archive ended in the middle of {self._shown}")
        if self._state is _State.HEADER:
            if self._buffer.startswith(b"{"):
                raise self._glued()
            if self._buffer:
                raise self._failed("the archive ended in the middle of a header")
            if self._is_extended():
                raise self._failed("the archive ended after a header that extends the next one")

    def _expect(self, state: _State, size: int) -> None:
        """Expect `size` bytes of `state` next, or the next header if `size` is 0."""
        self._state, self._left = (state, size) if size else (_State.HEADER, BLOCK)

    def _keep_tail(self, piece: memoryview) -> None:
        end = bytes(piece[-LONGEST_OBJECT:])
        self._tail = end if len(end) == LONGEST_OBJECT else (self._tail + end)[-LONGEST_OBJECT:]

    def _skip(self, view: memoryview) -> int:
        """Read bytes that are neither header nor content; return how many were read."""
        if self._state is _State.PADDING:
            if self._left == self._padding and view[0] == ord("{"):
                # Docker failed between an entry's content and its padding, and wrote an error message.
                self._state = _State.NO_TAR
                return 0
            taken = min(self._left, len(view))
            self._expect(_State.PADDING, self._left - taken)
            return taken
        if self._state is _State.AFTER_END:
            rest = bytes(view).lstrip(b"\0")
            if rest and not rest.startswith(b"{"):
                raise self._failed(f"after the end of the archive comes {rest[:60]!r}")
            if rest:
                self._state = _State.NO_TAR
            return len(view) - len(rest)
        if self._state is _State.NO_TAR:
            taken = min(LONGEST_OBJECT + 1 - len(self._buffer), len(view))
            self._buffer += view[:taken]
            if len(self._buffer) > LONGEST_OBJECT:
                raise self._glued()
            return taken
        raise ArchiveError("the archive is damaged")

    def _collected(self) -> TarEntry | None:
        """Process the buffer, which has a whole header block or the whole content of an extending header."""
        if self._state is _State.HEADER:
            block = bytes(self._buffer)
            self._buffer.clear()
            self._left = BLOCK
            return self._read_block(block)
        content = bytes(self._buffer)
        self._buffer.clear()
        self._read_extension(content)
        self._expect(_State.PADDING, self._padding)
        return None

    def _read_block(self, block: bytes) -> TarEntry | None:
        if block == ZEROS:
            if self._is_extended():
                raise self._failed("a header extends the next one, and none comes")
            self._zero_blocks += 1
            if self._zero_blocks == 2:
                self._state = _State.AFTER_END
            return None
        try:
            header = parse_header(block)
        except ArchiveError as error:
            if block.startswith(b"{"):
                self._buffer += block
                self._state = _State.NO_TAR
                return None
            raise self._failed(str(error)) from None
        if self._zero_blocks:
            raise self._failed("the archive goes on after a block of zeros")
        return self._read_header(header)

    def _read_header(self, header: Header) -> TarEntry | None:
        if header.flag in (b"L", b"K", b"x", b"g"):
            if header.size > LARGEST_EXTENSION:
                raise self._failed(f"a header that extends the next one has {header.size} bytes")
            self._extension = header
            self._shown = "a header that extends the next one"
            self._padding = -header.size % BLOCK
            if header.size:
                self._expect(_State.EXTENSION, header.size)
            else:
                self._read_extension(b"")
            return None
        if header.flag == b"S":
            raise self._failed(f"{header.name[:100]!r} is a sparse file in GNU's format")
        return self._begin(header)

    def _read_extension(self, content: bytes) -> None:
        header, self._extension = self._extension, None
        assert header is not None  # set by `_read_header`, the only way to this state
        if header.flag == b"L":
            self._long_name = content.partition(b"\0")[0]
            return
        if header.flag == b"K":
            self._long_link = content.partition(b"\0")[0]
            return
        try:
            records = parse_pax(content)
        except ArchiveError as error:
            raise self._failed(str(error)) from None
        if any(key.startswith(b"GNU.sparse.") for key in records):
            raise self._failed("the archive holds a sparse file in GNU's format")
        known = self._pax_global if header.flag == b"g" else self._pax
        known.update((key, value) for key, value in records.items() if key in (b"path", b"linkpath", b"size"))

    def _begin(self, header: Header) -> TarEntry:
        # POSIX: an empty value cancels that of a global header.
        pax = {key: value for key, value in (self._pax_global | self._pax).items() if value}
        name, link, size = pax.get(b"path", header.name), pax.get(b"linkpath", header.link), header.size
        name = name if self._long_name is None else self._long_name
        link = link if self._long_link is None else self._long_link
        if b"\0" in name or b"\0" in link:
            raise self._failed("a pax header has a name with a NUL in it")
        if b"size" in pax:
            try:
                size = pax_size(pax[b"size"])
            except ArchiveError as error:
                raise self._failed(str(error)) from None
        kind = header.kind(name)
        if kind not in (EntryKind.FILE, EntryKind.OTHER):
            size = 0  # as in Go and in Python's tarfile, no content follows, whatever size the header has
        self._long_name = self._long_link = None
        self._pax = {}
        self._tail = b""
        self._shown = repr(name[:100].decode("utf-8", "replace"))
        self._padding = -size % BLOCK
        self._expect(_State.CONTENT, size)
        return TarEntry(name, size, kind, link, header.mode)

    def _is_extended(self) -> bool:
        return self._long_name is not None or self._long_link is not None or bool(self._pax)

    def _failed(self, text: str) -> ArchiveError:
        self._state = _State.FAILED
        return ArchiveError(text)

    def _glued(self) -> ArchiveError:
        found = bytes(self._buffer)
        message = message_of(found)
        if message is not None:
            return self._failed(f"Docker broke off the archive: {message}")
        return self._failed(f"no tar header where one should be, but {found[:60]!r}")
