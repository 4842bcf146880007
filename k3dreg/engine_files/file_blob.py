"""Send a file of the engine's to a client, without making other clients wait for a reader container."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IConsumer, IDelayedCall, IReactorTime

from k3dreg.engine_files.archive_reads import ArchivedFile
from k3dreg.engine_files.engine_files import LARGEST_READ, read_verified
from k3dreg.engine_files.scratch_files import NoCopy, ScratchSpool
from k3dreg.engine_files.shared_copies import SharedCopies
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentGone
from k3dreg.streaming.file_producer import Sender

# Seconds, summed over one sending, for which the engine may wait for a client before k3dreg reads the rest of the file
# into a temporary file.  A client as fast as the engine never makes it wait; three seconds allow for a short stall of a
# network.
MAX_WAIT = 3.0


class FileReads(Protocol):
    """The part of `ReaderFiles` that a `ReaderBlob` uses."""

    clock: IReactorTime
    sending: dict[str, Way]
    copies: SharedCopies

    async def open(self, path: str, *, long: bool) -> ArchivedFile: ...

    async def read(self, path: str, limit: int) -> bytes: ...

    def copy(self, path: str, start: int, size: int) -> ScratchSpool | None: ...

    def spool(self, start: int) -> ScratchSpool: ...


class ReaderBlob:
    """A file of the engine's host as a blob.

    A single client gets the file directly from the engine.  Further clients that ask for the file meanwhile share a
    temporary copy, so the engine reads the file once more for all of them.  The first client goes on with the copy,
    too, unless it has more than half of the file.  If the disk has no room for a copy, each client gets the rest
    directly.

    A client that asks for a later part gets it from such a copy, which is kept for some seconds.  The archive API has
    no offsets, so without the copy the engine would read the file from its beginning for each part.

    A client that has made the engine wait for `max_wait` seconds in all gets the rest from a temporary file.  The
    engine reads one archive at a time from a container, so a slow client would block the container for all others.  If
    the disk has no room for the temporary file, the client keeps its container for as long as it takes bytes.
    """

    def __init__(self, files: FileReads, path: str, digest: Digest, size: int, max_wait: float) -> None:
        self.digest = digest
        self.size = size
        self._files = files
        self._path = path
        self._max_wait = max_wait

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Send the bytes from `start` up to, not including, `stop` to `consumer`, as `IBlob` says.

        Raises as `Sender.run`, `ContentGone` when the file is removed or changes, and what `ReaderFiles.open` raises.
        """
        first = self._files.sending.get(self._path)
        if first is None and not start:
            copy = self._files.copies.find(self._path, start)
        else:
            copy = self._files.copy(self._path, start, self.size)
        if copy is not None:
            if first is not None:
                first.share(copy)
            start = await _send_copy(copy, consumer, start, stop)
        way = Way(self._files, self._path, self.size, stop, self._max_wait)
        try:
            await way.send(consumer, start)
        finally:
            way.close()

    async def read(self) -> bytes:
        """Return the whole content.  Raises as `read_verified`."""
        return await read_verified(self.digest, self.size, lambda: self._files.read(self._path, LARGEST_READ))


async def _send_copy(copy: ScratchSpool, consumer: IConsumer, start: int, stop: int) -> int:
    """Send the bytes from the copy, leave the copy, and return the offset of the first byte that was not sent."""
    try:
        await copy.send(consumer, start, stop)
    except NoCopy as error:
        return error.position
    else:
        return stop
    finally:
        copy.leave()


class _ByCopy(Exception):
    """Ends the direct reads: the sending goes on with the temporary file."""


class Way:
    """One sending of a file: directly from the engine at first, and then perhaps from a temporary file.

    The caller calls `send` once, and `close` in the end.
    """

    def __init__(self, files: FileReads, path: str, size: int, stop: int, max_wait: float) -> None:
        self._files = files
        self._path = path
        self._size = size
        self._stop = stop
        self._max_wait = max_wait  # seconds for which the engine may still wait
        self._file: ArchivedFile | None = None
        self._spool: ScratchSpool | None = None
        self._straight = False  # the bytes come directly from the engine, and `files.sending` has this
        self._may_wait = False  # a temporary file could not be written, so the engine has to wait
        self._sharing = False  # the temporary file is a copy that other clients use, too
        self._read_was_cancelled = False  # a cancelled read of the file means that the temporary file has the rest
        self._position = 0
        self._timer: IDelayedCall | None = None
        self._waiting_since = 0.0

    async def send(self, consumer: IConsumer, start: int) -> None:
        """Send the bytes from `start` up to, not including, `stop`.  Raises as `ReaderBlob.send`."""
        self._position = start
        while True:
            if self._spool is None:
                sender = Sender(consumer, self._files.clock)
                with suppress(_ByCopy):
                    await sender.run(self._read_soon, self._position, self._stop, self._size)
                    return
            else:
                try:
                    await self._spool.send(consumer, self._position, self._stop)
                except NoCopy as error:
                    # The pull does not fail when the disk is full: it goes on directly, at the client's pace.
                    self._may_wait = self._may_wait or not self._sharing
                    self._position = error.position
                    self._leave_spool()
                else:
                    return

    def share(self, spool: ScratchSpool) -> None:
        """Go on with `spool`, a copy that other clients use, unless more than half of the file has been read."""
        if not self._straight or self._position > self._size // 2:
            return
        self._stop_timer()
        self._no_longer_straight()
        self._spool = spool.join()
        self._sharing = True
        if self._file is not None:  # else `_begin` is opening it, and closes it when it finds the spool
            file, self._file = self._file, None
            self._read_was_cancelled = True
            file.close()  # cancels a read that is under way, at once: see `_read`
            self._read_was_cancelled = False

    def close(self) -> None:
        """Release the reader container and the temporary file, whether the sending succeeded or not."""
        self._stop_timer()
        if self._straight:
            self._no_longer_straight()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._leave_spool()

    def _read_soon(self, offset: int, limit: int) -> Deferred[bytes]:
        """Read for `Sender`, which asks for a piece as soon as the client has taken the last but one.

        Fails with `_ByCopy` after the last piece that comes directly from the engine.
        """
        return Deferred.fromCoroutine(self._read(offset, limit))

    async def _read(self, offset: int, limit: int) -> bytes:
        self._stop_timer()
        if self._spool is None and self._file is None:
            await self._begin(offset)
        if self._file is None:
            raise _ByCopy
        try:
            data = await self._file.read()
        except CancelledError:
            if self._read_was_cancelled:
                raise _ByCopy from None
            raise
        if self._file.size != self._size:
            raise ContentGone(f"{self._path.rpartition('/')[2]} has changed while it was sent")
        data = data[:limit]
        self._position = offset + len(data)
        if self._position >= self._stop:
            file, self._file = self._file, None
            self._no_longer_straight()
            if self._position < self._size:  # else the file has released its container
                file.close()
        elif not self._may_wait:
            self._waiting_since = self._files.clock.seconds()
            self._timer = self._files.clock.callLater(max(0.0, self._max_wait), self._waited_too_long)
        return data

    async def _begin(self, offset: int) -> None:
        self._straight = True
        self._position = offset
        self._files.sending[self._path] = self
        file = await self._files.open(self._path, long=True)
        if self._spool is not None:
            file.close()
            return
        self._file = file
        try:
            await file.skip(offset)
        except CancelledError:
            if not self._read_was_cancelled:
                raise

    def _leave_spool(self) -> None:
        spool, self._spool, self._sharing = self._spool, None, False
        if spool is not None:
            spool.leave()

    def _no_longer_straight(self) -> None:
        self._straight = False
        if self._files.sending.get(self._path) is self:
            del self._files.sending[self._path]

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
            self._max_wait -= self._files.clock.seconds() - self._waiting_since

    def _waited_too_long(self) -> None:
        """Read the rest into a temporary file at the engine's pace, because the client is slower than the engine."""
        self._timer = None
        file, self._file = self._file, None
        if file is not None:
            self._spool = self._files.spool(self._position).join()
            self._spool.fill(succeed(file))
            self._no_longer_straight()
