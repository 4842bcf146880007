"""Read the tar archives that the engine's archive API sends: of one file, or of a whole directory."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable

from twisted.internet.defer import Deferred

from k3dreg.formats.tar_split import path_of
from k3dreg.formats.tar_stream import EntryContent, EntryKind, TarEntry, TarEvent, TarReader
from k3dreg.oci.errors import ContentError, ContentGone, FileAbsent, K3dregError
from k3dreg.store.durable_files import storage_errors
from k3dreg.streaming.content import IByteStream, IContentSink

# Bytes that are read after the wanted content.  A file's padding and the end of the archive are at most 511 + 1024
# bytes (pax(1), "ustar Interchange Format"); an archive with more than this is cut off.
_LARGEST_TRAILER = 64 * 1024
# Bytes that are read from the temporary file at a time.
_PIECE = 1024 * 1024
# Bytes that one `read` waits for.
_BATCH = 512 * 1024


def drain(stream: IByteStream, ended: Callable[[], None]) -> None:
    """Read the end of an archive in the background, close the stream, and call `ended`.

    An answer that is read to its end leaves a connection that the next request can use.  The caller does not wait,
    because the engine takes up to 0.2 s to end the archive of a directory.
    """

    async def read() -> None:
        try:
            size = 0
            while size < _LARGEST_TRAILER and (data := await stream.read()):
                size += len(data)
        except K3dregError:
            pass  # the wanted content is complete, whatever follows it
        finally:
            stream.close()
            ended()

    Deferred.fromCoroutine(read()).addErrback(lambda _: None)


class ArchivedFile:
    """The content of the only file in an archive.  The caller reads it to its end or closes it.

    `size` in bytes is None before the first `read`.
    """

    def __init__(self, stream: IByteStream, released: Callable[[], None]) -> None:
        """`released` is called once, when the engine has sent the whole answer, or when this was closed."""
        self._stream = stream
        self._released: Callable[[], None] | None = released
        self._left = 0
        self.size: int | None = None

    async def read(self, least: int = 1) -> bytes:
        """Return the next bytes of the content; b"" at its end.

        Raises `FileAbsent` if the path is not a regular file.  Raises `ContentGone` if the archive ends inside the
        content: the engine ends it there when the file is removed or becomes shorter.  Cancelling closes the file.
        """
        if self.size is not None and not self._left:
            return b""  # `drain` owns the stream by now
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

    def close(self) -> None:
        """Close the connection without reading the rest.  The engine then stops reading from the container."""
        self._stream.close()
        self._release()

    async def _read_more(self) -> bytes:
        """Return the next bytes, several of the engine's chunks of 32 KiB at once.

        Passing bytes to the consumer costs as much as receiving a chunk, so it is not done for each chunk.
        """
        data = await self._stream.read(min(self._left, _BATCH))
        if not data:
            raise ContentGone("a file of the engine's broke off")
        return data

    async def _read_header(self) -> bytes:
        """Return the first bytes of the content, perhaps with bytes that follow the content in the archive."""
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
        """Read the end of the archive in the background: see `drain`."""
        if self._released is not None:
            drain(self._stream, self._release)

    def _release(self) -> None:
        released, self._released = self._released, None
        if released is not None:
            released()


class ArchivedTree:
    """The files in a directory's archive, passed to a sink in the order in which the sink wants them.

    A file that arrives before the sink wants it is kept in a temporary file.  The owner calls `close` in the end.
    Methods are for worker threads.  `close` waits for a `feed` that still runs because its caller was cancelled.
    """

    def __init__(self, directory: str, sink: IContentSink) -> None:
        """`directory` is where the temporary file is made."""
        self._directory = directory
        self._sink = sink
        self._lock = threading.Lock()
        self._tar = TarReader()
        self._giving = False  # the arriving entry's content goes to the sink
        self._keeping = False  # the arriving entry's content goes to the temporary file
        self._scratch: int | None = None  # the descriptor of the temporary file
        self._scratch_size = 0
        self._kept: dict[bytes, tuple[int, int]] = {}  # offset and size in the temporary file
        self._links: dict[bytes, bytes] = {}

    def feed(self, data: bytes) -> bool:
        """Parse the next bytes of the archive, and return whether the sink wants more files.

        Raises `ContentError` when a file has another size than the sink expects, and what the sink raises.
        """
        with self._lock:
            for event in self._tar.feed(data):
                self._take(event)
            self._sink.flush()
            return self._sink.wanted is not None

    def finish(self) -> None:
        """Check, at the end of the archive, that the sink wants no more files.

        Raises `FileAbsent` if it does, or `ArchiveError` if it does because the archive is incomplete.
        """
        with self._lock:
            if self._sink.wanted is not None:
                self._tar.close()
                raise FileAbsent("a file of a layer is not in its directory")

    def close(self) -> None:
        """Remove the temporary file."""
        with self._lock:
            if self._scratch is not None:
                os.close(self._scratch)
                self._scratch = None

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
        # The name of every entry begins with the name of the directory that was asked for.
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
                # It may be wanted later, or never, or under the name of a hard link to it.
                self._kept[name] = (self._scratch_size, entry.size)
                self._keeping = True

    def _keep(self, data: memoryview) -> None:
        with storage_errors("writing a temporary file"):
            if self._scratch is None:
                with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
                    self._scratch = os.dup(file.fileno())
            while data:
                count = os.pwrite(self._scratch, data, self._scratch_size)
                self._scratch_size += count
                data = data[count:]

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
                with storage_errors("reading a temporary file"):
                    data = os.pread(self._scratch, min(_PIECE, stop - offset), offset)
                if not data:
                    raise ContentError("a temporary file is shorter than it was")
                offset += len(data)
                self._sink.add(data)

    def _check(self, size: int) -> None:
        if size != self._sink.missing:
            raise ContentError("a file of a layer is not as long as the layer's tar says")
