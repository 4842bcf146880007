"""Sending bytes to a consumer at the consumer's pace: out of a file, or out of anything that can be read by offset."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IReactorTime

from k3dreg.oci.errors import ContentGone
from k3dreg.streaming.content import IFileHandle
from k3dreg.streaming.file_handles import FileHandle
from k3dreg.streaming.push_producer import STALL, PushProducer
from k3dreg.streaming.sendfile import way_into_socket
from k3dreg.streaming.workers import Workers

# Bytes read, and written to the consumer, at a time.  Measured over loopback TCP with everything in the page cache:
# 64 KiB takes 2 to 4 s of processor time per GB in trips to the threads, 256 KiB takes 1.0, 1 MiB 0.8, which is not
# worth four times the memory.  A send holds two of these: one is read while the other is in the transport's buffer.
CHUNK = 256 * 1024


class Sender(PushProducer):
    """One sending of bytes to one consumer, as the push producer that the consumer pauses and resumes.

    Reads one piece ahead while the one before it is being written.  Call `run` once.
    """

    def __init__(self, consumer: IConsumer, clock: IReactorTime, stall: float = STALL) -> None:
        """`stall`: seconds in which the consumer must take a piece."""
        super().__init__(consumer, clock, stall)
        self._paused = False
        self._resumed: Deferred[None] | None = None

    async def run(self, read: Callable[[int, int], Deferred[bytes]], start: int, stop: int, chunk: int = CHUNK) -> None:
        """Send the bytes from `start` up to, not including, `stop`.

        `read(offset, limit)` gives at least 1 and at most `limit` bytes from `offset`.  It is asked for one piece at a
        time; it is cancelled when the sending ends early.

        Returns when the consumer has taken the last byte (as far as it tells: a transport has by then handed it to the
        kernel).  Raises what `read` fails with, `ContentGone` when it gives no bytes, `ConsumerGone` when
        the consumer stopped, `ConsumerStalled`, and what `interrupt` was given.  Cancelling stops the writing.
        Whichever way it ends, the producer is unregistered and no read is waited for any more.
        """
        self.position = start
        if start >= stop:
            return
        self._register()
        try:
            while self.position < stop:
                self._raise_if_interrupted()
                data = await self._wait(read(self.position, min(chunk, stop - self.position)))
                if not data:
                    raise ContentGone(f"content ended at byte {self.position}, before byte {stop}")
                await self._ready()
                self._consumer.write(data)
                self.position += len(data)
                del data  # else it is held until the next one is there, which would make three
            await self._ready()
        finally:
            self._unregister()

    def pauseProducing(self) -> None:
        """The consumer has enough for now."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The consumer takes more."""
        self._paused = False
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    async def _ready(self) -> None:
        while self._paused:
            self._resumed = Deferred()
            try:
                await self._wait_for_consumer(self._resumed)
            finally:
                self._resumed = None
        self._raise_if_interrupted()


class FileSending:
    """One sending of a file's bytes to one consumer, while the file may still be growing.  Call `run` once.

    By the kernel alone where more than a chunk goes into a socket as it is (`streaming.sendfile`); else they are read
    in worker threads, a chunk at a time.
    """

    def __init__(
        self,
        workers: Workers,
        handle: IFileHandle,
        consumer: IConsumer,
        available: Callable[[int], Deferred[int]] | None = None,
        *,
        chunk: int = CHUNK,
        stall: float = STALL,
    ) -> None:
        """`available(offset)` fires with how far the file may be read, once that is beyond `offset`; it is cancelled
        when the sending ends early.  Without it, all that is asked for is there.

        The handle is the caller's to close, as soon as `run` has ended.
        """
        self._workers = workers
        self._handle = handle
        self._consumer = consumer
        self._available = available
        self._chunk = chunk
        self._stall = stall
        self._producing: PushProducer | None = None
        self._error: Exception | None = None

    async def run(self, start: int, stop: int) -> None:
        """Send the bytes from `start` up to, not including, `stop`.

        Ends and raises as `Sender.run`; also `ContentGone` when the file is not there, or is shorter than `stop`, and
        what `available` fails with.
        """
        handle = self._handle
        if stop - start > self._chunk and isinstance(handle, FileHandle):
            way = way_into_socket(self._consumer, self._workers, self._stall)
            if way is not None:
                self._begin(way)
                await way.run(handle, start, stop, self._available)
                start = way.position
        sender = Sender(self._consumer, self._workers.clock, self._stall)
        self._begin(sender)
        await sender.run(self._read_soon, start, stop, self._chunk)

    @property
    def position(self) -> int:
        """Offset of the first byte that the consumer was not given, once `run` has begun."""
        return 0 if self._producing is None else self._producing.position

    def interrupt(self, error: Exception) -> None:
        """Make `run` raise `error`, at once if it is waiting.  Only the first call counts."""
        if self._producing is not None:
            self._producing.interrupt(error)
        elif self._error is None:
            self._error = error

    def _begin(self, producing: PushProducer) -> None:
        self._producing = producing
        if self._error is not None:
            # Not kept: once it is raised, it refers to the frames of this sending.
            producing.interrupt(self._error)
            self._error = None

    def _read_soon(self, offset: int, limit: int) -> Deferred[bytes]:
        if self._available is None:
            return self._workers.run(self._handle.read, offset, limit)
        return Deferred.fromCoroutine(self._read(self._available(offset), offset, limit))

    async def _read(self, available: Deferred[int], offset: int, limit: int) -> bytes:
        return await self._workers.run(self._handle.read, offset, min(limit, await available - offset))
