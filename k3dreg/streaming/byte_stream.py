"""Bytes that arrive from a connection, read at the reader's pace."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred

# Bytes that one `read` returns at most, give or take one received piece.  Each batch costs a change of thread there and
# back, about 0.2 ms of processor time; hashing and writing a batch of this size costs about 1 ms.
BATCH = 512 * 1024
# Unread bytes at which the source is stopped: a worker thread processes one batch while the next one arrives.  `read`
# resumes the source, as it leaves less than one received piece.
MOST_UNREAD = BATCH


class ByteStream:
    """The bytes of one body, buffered between a source and one reader.  Implements `IByteStream`.

    The source calls `write` with bytes, `arrived` when it has written everything that it received at once, and `end`
    at the end of the body.  The stream calls `flow(False)` to stop the source and `flow(True)` to resume it.  The
    reader calls `read` until it returns b"", or `close`.

    A stream ends once, in one of four ways: complete, broken, closed by its reader, or by cancelling a `read`.  After
    the first two the reader still gets the bytes that had arrived.
    """

    def __init__(self, flow: Callable[[bool], None]) -> None:
        self.received = 0  # bytes, including those that arrived after the stream was closed
        self.is_whole = False  # the source has ended the stream without an error
        self._flow = flow
        self._most_unread = MOST_UNREAD
        self._chunks: deque[bytes | memoryview] = deque()
        self._unread = 0  # bytes in `_chunks`
        self._stopped = False
        self._reader: Deferred[None] | None = None
        self._least = 1  # bytes that the reader waits for
        self._ended = False
        self._error: Exception | None = None

    # -- the reader's side ----------------------------------------------------------------------

    async def read(self, least: int = 1) -> bytes:
        """Return the bytes that have arrived, up to about `BATCH`; b"" at the end.

        Waits until `least` bytes (at most `BATCH`) have arrived or the stream has ended, because waking the reader
        for each small piece would cost as much as receiving it.  Raises the error that broke the stream, after all
        bytes before it were read.  Cancelling closes the stream.  Reading a closed stream raises `CancelledError`.
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
        """Close the stream and drop its unread bytes.  Safe at any time, any number of times."""
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
        if self._stopped:
            self._stopped = False
            self._flow(True)
        return batch[0] if len(batch) == 1 and isinstance(batch[0], bytes) else b"".join(batch)

    # -- the source's side ----------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes that arrived.  The source must not change `data` afterwards: it is not copied."""
        self.received += len(data)
        if self._ended:
            return
        self._chunks.append(data)
        self._unread += len(data)
        if self._unread >= self._most_unread and not self._stopped:
            self._stopped = True
            self._flow(False)

    def arrived(self) -> None:
        """Wake the reader if as many bytes are unread as it waits for."""
        if self._unread >= self._least:
            self._wake()

    def end(self, error: Exception | None = None) -> None:
        """End the stream: it is complete, or `error` broke it."""
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
        """End the stream with `error` and drop its unread bytes."""
        self._chunks.clear()
        self._unread = 0
        self._error = error
        self._finish(error)

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.callback(None)
