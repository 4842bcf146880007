"""What the engine's archive API gives: a tar of one file, or of a whole directory."""

from __future__ import annotations

import threading
from collections.abc import Callable

from twisted.internet.defer import Deferred

from k3dreg.engine_files.scratch_files import ScratchFile
from k3dreg.formats.tar_split import path_of
from k3dreg.formats.tar_stream import EntryContent, EntryKind, TarEntry, TarEvent, TarReader
from k3dreg.oci.errors import ContentError, ContentGone, FileAbsent, K3dregError
from k3dreg.streaming.content import IByteStream, IContentSink

# After a file come its padding and the archive's end: at most 511 + 1024 bytes, and what Go's tar writer pads with.
_LARGEST_TRAILER = 64 * 1024
_PIECE = 1024 * 1024
# Bytes that are collected before anybody gets them.
_BATCH = 256 * 1024


def drain(stream: IByteStream, ended: Callable[[], None]) -> None:
    """Read what little comes after what was wanted of an archive, close it, and call `ended`; nobody waits for that.

    So its connection can be used again.  (The engine takes up to 0.2 s to end the archive of a directory.)
    """

    async def read() -> None:
        try:
            size = 0
            while size < _LARGEST_TRAILER and (data := await stream.read()):
                size += len(data)
        except K3dregError:
            pass  # what was wanted is whole whatever comes after it
        finally:
            stream.close()
            ended()

    Deferred.fromCoroutine(read()).addErrback(lambda _: None)


class ArchivedFile:
    """The content of the one file in an archive.  `size` in bytes is known after the first `read`."""

    def __init__(self, stream: IByteStream, released: Callable[[], None]) -> None:
        """`released` is called once: when the engine has been rid of the answer and the reader is free again."""
        self._stream = stream
        self._released: Callable[[], None] | None = released
        self._left = 0
        self._ahead = b""
        self.size: int | None = None

    async def read(self, least: int = 1) -> bytes:
        """The next bytes of the content; b"" at its end.

        Raises `FileAbsent` if it is no file, `ContentGone` if it breaks off: the engine pads nothing and sends
        nothing more when a file goes away or becomes shorter.  Cancelling closes it.
        """
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        if self.size is not None and not self._left:
            return b""  # what comes after the content is being read already
        try:
            data = await (self._read_header() if self.size is None else self._read_more())
        except BaseException:
            self.close()
            raise
        if len(data) > self._left:
            data = data[: self._left]
        self._left -= len(data)
        if not self._left:
            self._finish()
        return data

    async def skip(self, count: int) -> None:
        """Read `count` bytes and throw them away: the archive API knows no offsets.  Raises as `read` does."""
        while count > 0 and (data := await self.read()):
            self._ahead = data[count:]
            count -= len(data)

    def close(self) -> None:
        """Give up the rest: the engine sees the connection close and lets go of the container."""
        self._stream.close()
        self._release()

    async def _read_more(self) -> bytes:
        """Some chunks at a time: they are of 32 KiB, and each trip to the consumer costs as much as reading one."""
        data = await self._stream.read(min(self._left, _BATCH))
        if not data:
            raise ContentGone("a file of the engine's broke off")
        return data

    async def _read_header(self) -> bytes:
        """The first bytes of the content, perhaps with some that come after it."""
        tar, content = TarReader(), []
        while data := await self._stream.read():
            for event in tar.feed(data):
                if isinstance(event, TarEntry):
                    if event.kind is not EntryKind.FILE:
                        raise FileAbsent("it is not a regular file")
                    if self.size is None:
                        self.size = self._left = event.size
                elif isinstance(event, EntryContent):
                    content.append(bytes(event.data))
            if self.size is not None and (content or not self.size):
                return b"".join(content)
        raise ContentGone("a file of the engine's broke off before it began")

    def _finish(self) -> None:
        """Read what comes after the content, so that the connection can be used again; nobody waits for that."""
        if self._released is not None:
            drain(self._stream, self._release)

    def _release(self) -> None:
        released, self._released = self._released, None
        if released is not None:
            released()


class ArchivedTree:
    """The files of a directory, as they come in an archive, given to a sink that wants them in an order of its own.

    What comes before it is wanted is kept in a temporary file.  For worker threads; `close` waits for a `feed` that
    nobody waits for any more.
    """

    def __init__(self, directory: str, sink: IContentSink) -> None:
        """`directory` is where temporary files may be made."""
        self._directory = directory
        self._sink = sink
        self._lock = threading.Lock()
        self._tar = TarReader()
        self._giving = False  # the entry that is arriving is the wanted one
        self._keeping = False
        self._scratch: ScratchFile | None = None
        self._kept: dict[bytes, tuple[int, int]] = {}  # offset and size in the temporary file
        self._links: dict[bytes, bytes] = {}

    def feed(self, data: bytes) -> bool:
        """The next bytes of the archive; whether the sink wants more.

        Raises `ContentError` when a file is not what the sink expects, and what the sink raises.
        """
        with self._lock:
            for event in self._tar.feed(data):
                self._take(event)
            self._sink.flush()
            return self._sink.wanted is not None

    def finish(self) -> None:
        """The archive has ended.  Raises `FileAbsent` if a file is still wanted, `ArchiveError` if it broke off."""
        with self._lock:
            if self._sink.wanted is not None:
                self._tar.close()
                raise FileAbsent("a file of a layer is not in its directory")

    def close(self) -> None:
        """Remove the temporary file."""
        with self._lock:
            if self._scratch is not None:
                self._scratch.close()

    def _take(self, event: TarEvent) -> None:
        if isinstance(event, EntryContent):
            if self._giving:
                self._sink.add(event.data)
            elif self._keeping:
                self._keep(event.data)
        elif isinstance(event, TarEntry):
            self._begin(event)
        else:
            self._giving = self._keeping = False
            self._give_kept()

    def _begin(self, entry: TarEntry) -> None:
        # The directory's own name comes first in all of them.
        _, _, below = entry.raw_name.partition(b"/")
        if not below.strip(b"/."):
            return
        name = path_of(below)
        if entry.kind is EntryKind.HARD_LINK:
            self._links[name] = path_of(entry.raw_link.partition(b"/")[2])
        elif entry.kind is EntryKind.FILE and entry.size:
            if name == self._sink.wanted:
                self._check(entry.size)
                self._giving = True
            else:
                # Not all are wanted: some only under another name, as which they are a link.
                self._kept[name] = (self._scratch.written if self._scratch is not None else 0, entry.size)
                self._keeping = True

    def _keep(self, data: memoryview) -> None:
        if self._scratch is None:
            self._scratch = ScratchFile(self._directory)
        self._scratch.write(data)

    def _give_kept(self) -> None:
        while (wanted := self._sink.wanted) is not None:
            name = wanted if wanted in self._kept else self._links.get(wanted, b"")
            if name not in self._kept:
                return
            assert self._scratch is not None
            offset, size = self._kept[name]
            self._check(size)
            stop = offset + size
            while offset < stop:
                data = self._scratch.read(offset, min(_PIECE, stop - offset))
                if not data:
                    raise ContentError("a temporary file is shorter than it was")
                offset += len(data)
                self._sink.add(data)

    def _check(self, size: int) -> None:
        if size != self._sink.missing:
            raise ContentError("a file of a layer is not as long as the layer's tar says")
