"""Bytes that arrive from a connection, read at the reader's pace."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred

# The most that one `read` returns, in bytes, give or take a piece: large enough that a trip to a worker thread
# (about 0.1 ms) is small beside the hashing and writing of a batch (about 0.5 ms), and small beside what a daemon
# has in memory with some streams under way.
BATCH = 256 * 1024
# Unread bytes above which the source is stopped.  Two batches: a worker thread has one while the next one arrives.
HIGH_WATER = 2 * BATCH
# Unread bytes at or below which the source goes on: early enough that a steady reader never waits for it.
LOW_WATER = BATCH


class ByteStream:
    """The bytes of one body.  An `IByteStream`.

    The source calls `write` with bytes, `arrived` when it has written all that it received together, and in the end
    `end`.  It obeys `flow`: False stops it, True lets it go on.  The reader calls `read` and `close`.

    A stream ends in one of four ways: whole, broken, closed by its reader, or by cancelling a `read`.  Only the first
    counts.  What had arrived is still read after the first two.
    """

    def __init__(self, flow: Callable[[bool], None]) -> None:
        self.received = 0  # bytes, those included that came after the stream was closed
        self.is_whole = False  # the source has written the last byte
        self._flow = flow
        self._most_unread = HIGH_WATER
        self._chunks: deque[bytes | memoryview] = deque()
        self._unread = 0  # bytes in `_chunks`
        self._stopped = False
        self._reader: Deferred[None] | None = None
        self._least = 1  # bytes that the reader waits for
        self._ended = False
        self._error: Exception | None = None

    # -- the reader's side ----------------------------------------------------------------------

    async def read(self, least: int = 1) -> bytes:
        """Return the next bytes, all that have arrived up to about `BATCH`; b"" at the end.

        Waits until at least `least` bytes, of at most `BATCH`, have arrived, or the end: waking a reader costs as much
        as receiving a piece.  Raises the error that broke the stream, after the last bytes that came before it.
        Cancelling closes the stream.  Reading a closed stream raises `CancelledError`.
        """
        if self._unread < least and not self._ended:
            if self._reader is not None:
                raise RuntimeError("a stream has one reader at a time")
            self._least = least
            self._reader = Deferred(lambda _: self.close())
            await self._reader
        if self._chunks:
            return self._take_batch()
        if self._error is not None:
            raise self._error
        return b""

    def close(self) -> None:
        """Give up the rest.  Safe at any time, any number of times."""
        was_stopped = self._stopped
        if not self._ended or self._chunks:
            self._drop(CancelledError())
        if was_stopped:
            self._flow(True)

    def _take_batch(self) -> bytes:
        batch = [self._chunks.popleft()]
        size = len(batch[0])
        while self._chunks and size < BATCH:
            batch.append(self._chunks.popleft())
            size += len(batch[-1])
        self._unread -= size
        if self._stopped and self._unread <= LOW_WATER:
            self._stopped = False
            self._flow(True)
        return batch[0] if len(batch) == 1 and isinstance(batch[0], bytes) else b"".join(batch)

    # -- the source's side ----------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        """Take bytes that arrived.  They stay as they are until they are read."""
        self.received += len(data)
        if self._ended:
            return
        self._chunks.append(data)
        self._unread += len(data)
        if self._unread > self._most_unread and not self._stopped:
            self._stopped = True
            self._flow(False)

    def arrived(self) -> None:
        """Wake the reader if it has what it waits for."""
        if self._unread >= self._least:
            self._wake()

    def end(self, error: Exception | None = None) -> None:
        """Take note that no more bytes come: the stream is whole, or `error` broke it."""
        self.is_whole = error is None
        self._finish(error)

    def _finish(self, error: Exception | None) -> None:
        """End the stream, if it has not ended."""
        if not self._ended:
            self._ended = True
            self._stopped = False
            self._error = error
            self._wake()

    def _drop(self, error: Exception) -> None:
        """End the stream without what had arrived."""
        self._chunks.clear()
        self._unread = 0
        self._error = error
        self._finish(error)

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.callback(None)
