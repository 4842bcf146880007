"""Sending bytes to a consumer at the consumer's pace: out of a file, or out of anything that can be read by offset."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer, IReactorTime
from zope.interface import implementer

from k3dreg.interfaces import IFileHandle
from k3dreg.model.errors import ContentGone
from k3dreg.streaming.workers import Workers

T = TypeVar("T")

# Bytes read, and written to the consumer, at a time.  Measured over loopback TCP with everything in the page cache:
# 64 KiB takes 2 to 4 s of processor time per GB in trips to the threads, 256 KiB takes 1.0, 1 MiB 0.8, which is not
# worth four times the memory.  A send holds two of these: one that is read ahead, one in the transport's buffer.
CHUNK = 256 * 1024
# Seconds in which a consumer must take a chunk.  containerd gives up a pull after five minutes without a byte
# (`image_pull_progress_timeout`), so nobody waits at the other end any more.
STALL = 300.0


class ConsumerGone(Exception):
    """The consumer wants no more bytes: its connection is lost.  Nothing failed here, and nobody is left to tell."""


class ConsumerStalled(ConsumerGone):
    """The consumer took nothing for so long that it is given up; its connection is the caller's to abort."""


@implementer(IFileHandle)
class FileHandle:
    """A file that is read at offsets, from several threads at once, and closed whenever its owner likes.

    A descriptor that is closed while a thread is about to read from it may be another file by then.  So the close
    waits for the reads that are under way: whoever comes last closes the descriptor, and nobody blocks.
    """

    def __init__(self, path: str = "", *, descriptor: int | None = None) -> None:
        """Either a `path`, opened at the first read, or a `descriptor`, which belongs to the handle from now on."""
        self._path = path
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._reading = 0
        self._closed = False

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; b"" at the end of the file.  For worker threads.

        Raises `ContentGone` when the file is not there or the handle is closed, and `OSError`.
        """
        descriptor = self._enter()
        try:
            return os.pread(descriptor, length, offset)
        finally:
            self._leave()

    def size(self) -> int:
        """Bytes in the file.  For worker threads; raises as `read` does."""
        descriptor = self._enter()
        try:
            return os.fstat(descriptor).st_size
        finally:
            self._leave()

    def close(self) -> None:
        """No more reads.  Safe at any time, in any thread, any number of times.

        It may have to give the disk blocks of a removed file back, so leave it to a worker thread if you can.
        """
        with self._lock:
            self._closed = True
        self._close_if_last()

    def _enter(self) -> int:
        with self._lock:
            if self._closed:
                raise ContentGone("a file was closed before it was read")
            if self._descriptor is None:
                try:
                    self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    raise ContentGone("a file is not there any more") from None
            self._reading += 1
            return self._descriptor

    def _leave(self) -> None:
        with self._lock:
            self._reading -= 1
        self._close_if_last()

    def _close_if_last(self) -> None:
        with self._lock:
            if not self._closed or self._reading or self._descriptor is None:
                return
            descriptor, self._descriptor = self._descriptor, None
        os.close(descriptor)

    def __del__(self) -> None:
        # The last resort, e.g. for a blob that arrived whole and that nobody asked for.  No read can be under way:
        # it would refer to the handle.
        self.close()


@implementer(IPushProducer)
class Sender:
    """One sending of bytes to one consumer, as the push producer that the consumer pauses and resumes.

    Reads one piece ahead while the one before it is being written.  Call `run` once.
    """

    def __init__(self, consumer: IConsumer, clock: IReactorTime, stall: float = STALL) -> None:
        """`stall`: seconds in which the consumer must take a piece."""
        self._consumer = consumer
        self._clock = clock
        self._stall = stall
        self._paused = False
        self._error: Exception | None = None
        self._resumed: Deferred[None] | None = None
        self._interruptible: Deferred[object] | None = None

    async def run(self, read: Callable[[int, int], Deferred[bytes]], start: int, stop: int, chunk: int = CHUNK) -> None:
        """Send the bytes from `start` up to, not including, `stop`.

        `read(offset, limit)` gives at least 1 and at most `limit` bytes from `offset`.  It is asked for one piece at a
        time; it is cancelled when the sending ends early.

        Returns when the consumer has taken the last byte (as far as it tells: a transport has by then handed it to the
        kernel).  Raises what `read` fails with, `ContentGone` when it gives no bytes, `ConsumerGone` when
        the consumer stopped, `ConsumerStalled`, and what `interrupt` was given.  Cancelling stops the writing.
        Whichever way it ends, the producer is unregistered and no read is waited for any more.
        """
        if start >= stop:
            return
        self._register()
        ahead: Deferred[bytes] | None = None
        try:
            ahead = read(start, min(chunk, stop - start))
            while ahead is not None:
                self._raise_if_interrupted()
                # Not `ahead` any more: it ends with this wait, whichever way, and is not to be cancelled below.
                arriving, ahead = ahead, None
                data = await self._wait(arriving)
                if not data:
                    raise ContentGone(f"content ended at byte {start}, before byte {stop}")
                start += len(data)
                ahead = read(start, min(chunk, stop - start)) if start < stop else None
                await self._ready()
                self._consumer.write(data)
                del data  # else it is held until the next one is there, which would make three
            await self._ready()
        finally:
            if ahead is not None:
                ahead.addErrback(lambda _: None)
                ahead.cancel()
            self._unregister()

    def interrupt(self, error: Exception) -> None:
        """Make `run` raise `error`, at once if it is waiting.  Only the first call counts."""
        if self._error is None:
            self._error = error
            if self._interruptible is not None:
                self._interruptible.cancel()

    # -- what the consumer calls ----------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The consumer has enough for now."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The consumer takes more."""
        self._paused = False
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    def stopProducing(self) -> None:
        """The consumer is gone."""
        self.interrupt(ConsumerGone("the connection was lost"))

    # -- waiting --------------------------------------------------------------------------------

    async def _ready(self) -> None:
        while self._paused:
            resumed: Deferred[None] = Deferred()
            self._resumed = resumed
            timer = self._clock.callLater(
                self._stall, self.interrupt, ConsumerStalled(f"the client took nothing for {self._stall:.0f} s")
            )
            try:
                await self._wait(resumed)
            finally:
                self._resumed = None
                if timer.active():
                    timer.cancel()
        self._raise_if_interrupted()

    async def _wait(self, deferred: Deferred[T]) -> T:
        """Wait for `deferred`, or until interrupted."""
        self._interruptible = deferred  # type: ignore[assignment]  # only ever cancelled
        try:
            return await deferred
        except CancelledError:
            self._raise_if_interrupted()
            raise
        finally:
            self._interruptible = None

    def _raise_if_interrupted(self) -> None:
        if self._error is not None:
            raise self._error from None

    # twisted.web's Request has no channel once its connection is lost, and fails on any further word.

    def _register(self) -> None:
        if getattr(self._consumer, "channel", self) is None:
            raise ConsumerGone("the connection was lost")
        self._consumer.registerProducer(self, True)

    def _unregister(self) -> None:
        if getattr(self._consumer, "channel", self) is not None:
            self._consumer.unregisterProducer()


async def send_file(
    workers: Workers,
    handle: IFileHandle,
    consumer: IConsumer,
    start: int,
    stop: int,
    *,
    chunk: int = CHUNK,
    stall: float = STALL,
) -> None:
    """Send a file's bytes from `start` up to, not including, `stop`; reads in worker threads, `chunk` bytes at a time.

    Ends and raises as `Sender.run`; also `ContentGone` when the file is not there, or is shorter than `stop`.
    The handle is the caller's to close, as soon as this has ended.
    """
    sender = Sender(consumer, workers.clock, stall)
    await sender.run(lambda offset, limit: workers.run(handle.read, offset, limit), start, stop, chunk)
