"""Bodies of requests for tests of use cases."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from twisted.internet.defer import CancelledError, Deferred

from k3dreg.streaming.content import IThreadRead


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


class TakenBody(FakeBody):
    """One of which a worker thread may take what has arrived; `given_back` says how often that ended."""

    def __init__(self, chunks: Iterable[bytes] = (), *, open_ended: bool = False) -> None:
        super().__init__(chunks, open_ended=open_ended)
        self.is_taken = False
        self.given_back = 0

    def take_over(self) -> IThreadRead:
        assert not self.is_taken
        self.is_taken = True
        return self

    def run(self, write: Callable[[memoryview], object], most: int) -> int:
        taken = 0
        while self._chunks and taken < most:
            chunk = self._chunks.popleft()
            if len(chunk) > most - taken:
                self._chunks.appendleft(chunk[most - taken :])
                chunk = chunk[: most - taken]
            taken += len(chunk)
            buffer = bytearray(chunk)
            write(memoryview(buffer))
            buffer[:] = bytes(len(buffer))  # it is not valid any more
        return taken

    def give_back(self) -> None:
        assert self.is_taken
        self.is_taken = False
        self.given_back += 1

    async def read(self, least: int = 1) -> bytes:
        assert not self.is_taken
        return await super().read(least)
