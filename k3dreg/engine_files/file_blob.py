"""Sending a file of the engine's to a client without holding up others who want one."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IConsumer, IDelayedCall, IReactorTime

from k3dreg.engine_files.archive_reads import ArchivedFile
from k3dreg.engine_files.scratch_files import NoCopy, ScratchSpool
from k3dreg.engine_files.shared_copies import SharedCopies
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, ContentGone
from k3dreg.streaming.file_producer import Sender

# Seconds in all that the engine may wait for a client, before the rest of the file is taken from it into a temporary
# file.  A client as fast as the engine never makes it wait; three seconds are one hiccup of a network.
PATIENCE = 3.0
# IBlob.read is for manifests and configs.
_LARGEST_READ = 8 * 1024 * 1024


class FileReads(Protocol):
    """What a `ReaderBlob` needs of `ReaderFiles`."""

    clock: IReactorTime
    sending: dict[str, Way]
    copies: SharedCopies

    async def open(self, path: str, *, long: bool) -> ArchivedFile: ...

    async def read(self, path: str, limit: int) -> bytes: ...

    def copy(self, path: str, start: int, size: int) -> ScratchSpool | None: ...

    def spool(self, start: int) -> ScratchSpool: ...


class ReaderBlob:
    """A file of the engine's host as a blob.

    One who asks alone gets it straight from the engine.  Those who ask while it is being sent to another share a
    temporary copy, and the first goes on with that, unless he has most of it: the engine reads it once, however many
    they are.  Where there is no room for a copy, each gets the rest by himself.

    One who asks for a later part gets it from such a copy, too, which is kept for some seconds: the archive API knows
    no offsets, and clients that ask for one part ask for others.

    One who has made the engine wait for `patience` seconds in all gets the rest by way of such a copy, too: the engine
    reads one archive at a time from a container, so a slow client would keep it from everybody else.  Where there is no
    room for that copy the client keeps its reader, as long as the client takes bytes at all.
    """

    def __init__(self, files: FileReads, path: str, digest: Digest, size: int, patience: float) -> None:
        self.digest = digest
        self.size = size
        self._files = files
        self._path = path
        self._patience = patience

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Raises as `Sender.run`; also `ContentGone` when the file goes away, and what `ReaderFiles.open` raises."""
        first = self._files.sending.get(self._path)
        if first is None and not start:
            copy = self._files.copies.find(self._path, start)
        else:
            copy = self._files.copy(self._path, start, self.size)
        if copy is not None:
            if first is not None:
                first.share(copy)
            start = await _send_copy(copy, consumer, start, stop)
        way = Way(self._files, self._path, self.size, stop, self._patience)
        try:
            await way.send(consumer, start)
        finally:
            way.close()

    async def read(self) -> bytes:
        """All of it, verified."""
        if self.size > _LARGEST_READ:
            raise ContentError(f"{self.digest} has {self.size} bytes, which is too many for a document")
        data = await self._files.read(self._path, _LARGEST_READ)
        if Digest.of(data, self.digest.algorithm) != self.digest:
            raise ContentError(f"{self.digest} does not hash to its digest on the engine's disk")
        return data


async def _send_copy(copy: ScratchSpool, consumer: IConsumer, start: int, stop: int) -> int:
    """Send what there is of it, and leave it; up to where that was."""
    try:
        await copy.send(consumer, start, stop)
    except NoCopy as error:
        return error.position
    else:
        return stop
    finally:
        copy.leave()


class _ByCopy(Exception):
    """The rest comes by way of the temporary file."""


class Way:
    """How the bytes come for one sending: straight, and then perhaps through a temporary file."""

    def __init__(self, files: FileReads, path: str, size: int, stop: int, patience: float) -> None:
        self._files = files
        self._path = path
        self._size = size
        self._stop = stop
        self._patience = patience  # what is left of it, in seconds
        self._file: ArchivedFile | None = None
        self._spool: ScratchSpool | None = None
        self._straight = False
        self._may_wait = False  # there was no room for the rest
        self._sharing = False  # the temporary file was not made for this one
        self._given_up = False  # a read has ended because it goes on there
        self._position = 0
        self._timer: IDelayedCall | None = None
        self._waiting_since = 0.0

    async def send(self, consumer: IConsumer, start: int) -> None:
        """As `ReaderBlob.send`."""
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
                    # A read does not fail for want of a copy: the engine has to wait for a slow client.
                    self._may_wait = self._may_wait or not self._sharing
                    self._position = error.position
                    self._leave_spool()
                else:
                    return

    def share(self, spool: ScratchSpool) -> None:
        """Others take the file by way of `spool`: go on with it as well, unless most of the file has been read."""
        if not self._straight or self._position > self._size // 2:
            return
        self._stop_timer()
        self._no_longer_straight()
        self._spool = spool.join()
        self._sharing = True
        if self._file is not None:  # else it is being opened
            file, self._file = self._file, None
            self._given_up = True
            file.close()  # whoever waits for a piece of it hears of that at once
            self._given_up = False

    def close(self) -> None:
        """Whichever way the sending ended."""
        self._stop_timer()
        if self._straight:
            self._no_longer_straight()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._leave_spool()

    def _read_soon(self, offset: int, limit: int) -> Deferred[bytes]:
        """For `Sender`: it asks for the next piece as soon as the client has taken the one before the last.

        Fails with `_ByCopy` after the last that comes straight.
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
            if self._given_up:
                raise _ByCopy from None
            raise
        if self._file.size != self._size:
            raise ContentGone(f"{self._path.rpartition('/')[2]} has changed while it was sent")
        data = data[:limit]
        self._position = offset + len(data)
        if self._position >= self._stop:
            file, self._file = self._file, None
            self._no_longer_straight()
            if self._position < self._size:  # else it gives the reader back by itself
                file.close()
        elif not self._may_wait:
            self._waiting_since = self._files.clock.seconds()
            self._timer = self._files.clock.callLater(max(0.0, self._patience), self._out_of_patience)
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
            if not self._given_up:
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
            self._patience -= self._files.clock.seconds() - self._waiting_since

    def _out_of_patience(self) -> None:
        """The client is slower than the engine: take the rest now, and let others have the reader."""
        self._timer = None
        file, self._file = self._file, None
        if file is not None:
            self._spool = self._files.spool(self._position).join()
            self._spool.fill(succeed(file))
            self._no_longer_straight()
