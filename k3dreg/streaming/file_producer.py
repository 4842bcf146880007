"""Send bytes to a consumer at its pace, from a file or any other source that can be read at offsets."""

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

# Bytes read, and written to the consumer, at once.  Measured over loopback TCP with everything in the page cache, in
# processor time per GB: 2 to 4 s with 64 KiB, for the calls into worker threads; 1.0 s with 256 KiB; 0.8 s with 1 MiB,
# which is not worth four times the memory.  A send holds two chunks: it reads one while the transport buffers the last.
CHUNK = 256 * 1024


class Sender(PushProducer):
    """A push producer that sends one range of bytes to one consumer.  Call `run` once.

    It reads the next piece while the transport still sends the one before.
    """

    def __init__(self, consumer: IConsumer, clock: IReactorTime, stall: float = STALL) -> None:
        """`stall`: seconds within which the consumer must take a piece."""
        super().__init__(consumer, clock, stall)
        self._paused = False
        self._resumed: Deferred[None] | None = None

    async def run(self, read: Callable[[int, int], Deferred[bytes]], start: int, stop: int, chunk: int = CHUNK) -> None:
        """Send the bytes from `start` up to, not including, `stop`.

        `read(offset, limit)` returns at least 1 and at most `limit` bytes from `offset`.  One call is under way at a
        time; it is cancelled when the sending ends early.

        Returns when the consumer has taken the last byte: a transport has then passed it to the kernel.  Raises what
        `read` fails with, `ContentGone` when it returns no bytes, `ConsumerGone` when the consumer stopped,
        `ConsumerStalled`, and the error passed to `interrupt`.  Cancelling stops the writing.  However `run` ends, the
        producer is unregistered and no read is waited for.
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
                del data  # otherwise a third chunk would be in memory until the next read ends
            await self._ready()
        finally:
            self._unregister()

    def pauseProducing(self) -> None:
        """Stop writing until `resumeProducing`: the consumer's buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Go on writing."""
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
    """Sends one range of a file, which may still be growing, to one consumer.  Call `run` once.

    More than a chunk that goes into a plain socket is sent by sendfile(2) (`streaming.sendfile`).  Other bytes are read
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
        """`available(offset)` fires with the offset up to which the file may be read, once that is beyond `offset`.

        It is cancelled when the sending ends early.  Without `available`, the file is complete.  The caller closes the
        handle when `run` has ended.
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

        Returns and raises as `Sender.run`.  Also raises `ContentGone` when the file does not exist or is shorter than
        `stop`, and what `available` fails with.
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
        """Return the offset of the first byte that was not written to the consumer; 0 before `run`."""
        return 0 if self._producing is None else self._producing.position

    def interrupt(self, error: Exception) -> None:
        """Make `run` raise `error`, at once if it is waiting.  Later calls are ignored."""
        if self._producing is not None:
            self._producing.interrupt(error)
        elif self._error is None:
            self._error = error

    def _begin(self, producing: PushProducer) -> None:
        self._producing = producing
        if self._error is not None:
            # Drop the reference: once raised, the error refers to the frames of this sending, which would be a cycle.
            producing.interrupt(self._error)
            self._error = None

    def _read_soon(self, offset: int, limit: int) -> Deferred[bytes]:
        if self._available is None:
            return self._workers.run(self._handle.read, offset, limit)
        return Deferred.fromCoroutine(self._read(self._available(offset), offset, limit))

    async def _read(self, available: Deferred[int], offset: int, limit: int) -> bytes:
        return await self._workers.run(self._handle.read, offset, min(limit, await available - offset))
