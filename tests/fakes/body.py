"""Bodies of requests for tests of use cases."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from twisted.internet.defer import CancelledError, Deferred


class FakeBody:
    """Gives `chunks`, one for each read; then the end, or, while `open_ended`, nothing until `feed` or `end`."""

    def __init__(self, chunks: Iterable[bytes] = (), *, open_ended: bool = False) -> None:
        self._chunks = deque(chunks)
        self._open = open_ended
        self._reader: Deferred[None] | None = None
        self.reads = 0

    async def read(self, least: int = 1) -> bytes:
        self.reads += 1
        if not self._chunks and self._open:
            self._reader = Deferred()
            await self._reader
        return self._chunks.popleft() if self._chunks else b""

    def feed(self, data: bytes) -> None:
        """More bytes arrive."""
        self._chunks.append(data)
        self._wake()

    def end(self) -> None:
        """No more come."""
        self._open = False
        self._wake()

    def close(self) -> None:
        """The client is gone."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.errback(CancelledError())

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.callback(None)
