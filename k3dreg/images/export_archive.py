"""The blobs of a `docker save`, one after the other, while its bytes come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from k3dreg.formats.image_archive import ArchiveEvent, ArchiveIndex, ArchiveReader, BlobBegin, BlobData
from k3dreg.streaming.content import IByteStream
from k3dreg.streaming.workers import Workers

# Bytes that one read waits for.  Each costs two calls in worker threads, and the engine sends chunks of 32 KiB.
_LEAST = 256 * 1024


class ExportArchive:
    """Parses the archive that `stream` brings.  Call `next` until it returns None, and then `finish`."""

    def __init__(self, stream: IByteStream, workers: Workers, received: Callable[[int], None]) -> None:
        """`received` is called with the number of bytes of each piece of the archive.  The caller closes `stream`."""
        self._stream = stream
        self._workers = workers
        self._received = received
        self._reader = ArchiveReader()
        self._events: deque[ArchiveEvent] = deque()

    async def next(self) -> BlobBegin | None:
        """Skip what is left of the blob, and return the next one; None at the end of the archive.

        Raises `ArchiveError`, and as the stream.
        """
        while (event := await self._event()) is not None:
            if isinstance(event, BlobBegin):
                return event
        return None

    async def read(self) -> memoryview:
        """Return the next bytes of the blob that `next` returned; no bytes at its end.

        Raises `ArchiveError`, also if the archive ends inside the blob, and as the stream.
        """
        event = await self._event()
        if event is None:
            self.finish()
        return event.data if isinstance(event, BlobData) else memoryview(b"")

    def finish(self) -> ArchiveIndex:
        """Return the archive's index after its last byte.  Raises `ArchiveError` if the archive is incomplete."""
        return self._reader.finish()

    async def _event(self) -> ArchiveEvent | None:
        while not self._events:
            data = await self._stream.read(_LEAST)
            if not data:
                return None
            self._received(len(data))
            self._events.extend(await self._workers.run(self._parse, data))
        return self._events.popleft()

    def _parse(self, data: bytes) -> list[ArchiveEvent]:
        return list(self._reader.feed(data))
