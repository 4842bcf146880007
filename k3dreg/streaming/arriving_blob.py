"""A blob that can be sent while it is still being written."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, ContentGone, K3dregError
from k3dreg.streaming.content import IBlob, IFileHandle
from k3dreg.streaming.file_producer import FileSending
from k3dreg.streaming.workers import Workers

# IBlob.read is for manifests and configs.
LARGEST_READ = 8 * 1024 * 1024


class ArrivingBlob:
    """A blob of known digest and size that somebody else is writing to a staging file.

    Whoever writes it says how far he is with `advance`, and in the end `finish` or `fail`, all in the reactor's
    thread.  Senders read what is there from the file, each at his own pace and from where he likes, and wait when they
    have caught up; they hold up neither the writer nor each other.

    The last byte is not given to anybody before `finish`, because until then nobody knows that the bytes are right:
    a reader who lacks one byte knows that he has not got it all.
    """

    def __init__(self, workers: Workers, digest: Digest, size: int, handle: IFileHandle) -> None:
        """`handle` reads the staging file and is the blob's own from now on.

        The blob closes it after `finish` or `fail`, when the last sender that has begun by then has ended.
        """
        self.digest = digest
        self.size = size
        self._workers = workers
        self._handle = handle
        self._written = 0
        self._finished = False
        self._kept: IBlob | None = None
        self._failed: BaseException | None = None
        # Each with the offset of the first byte that it has not taken out of the file.
        self._senders: dict[FileSending, int] = {}
        self._watching: list[Deferred[None]] = []  # those who wait until senders move
        self._dropped = 0  # bytes at the beginning that are not there any more
        self._waiting: list[Deferred[None]] = []

    # -- the writer's side ----------------------------------------------------------------------

    def advance(self, total: int) -> None:
        """The first `total` bytes are in the file.  Bytes beyond `size` are nobody's business here."""
        if total > self._written:
            self._written = min(total, self.size)
            _fire(self._waiting)

    def finish(self, kept: IBlob | None) -> None:
        """All of it is in the file, and it is verified.

        `kept` is the same blob where it is kept, for those that were given this one and have not begun to read it.
        """
        if self._failed is None and not self._finished:
            self._written = self.size
            self._kept = kept
            self._finished = True
            _fire(self._waiting)
            self._close_if_ended()

    def fail(self, reason: Exception | Failure) -> None:
        """It will not be finished.  All who send it, or will, get a `ContentError` that says so.

        Only an error of our own is quoted in it: the text of any other may hold a path.
        """
        if self._finished or self._failed is not None:
            return
        self._failed = reason.value if isinstance(reason, Failure) else reason
        for sender in list(self._senders):
            sender.interrupt(self._error())
        _fire(self._waiting)
        self._close_if_ended()

    @property
    def has_beginning(self) -> bool:
        """Return whether a new reader can begin at the first byte."""
        return self._dropped == 0

    async def drop_read(self, most: int, patience: float) -> int:
        """Wait until every sender, and one at least, lacks at most `most` of the bytes that are in the file.

        Returns the offset before which the writer may drop what it has: no sender can begin there from now on.
        Raises Twisted's `TimeoutError` after `patience` seconds in which there is no sender.
        """
        while not self._senders or self._written - min(self._senders.values()) > most:
            moved: Deferred[None] = Deferred(lambda gone: _forget(gone, self._watching))
            self._watching.append(moved)
            await (moved if self._senders else moved.addTimeout(patience, self._workers.clock))
        self._dropped = min(self._senders.values())
        return self._dropped

    # -- IBlob ----------------------------------------------------------------------------------

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Ends and raises as `FileSending.run`; and `ContentError` once the blob has failed."""
        self._raise_if_failed()
        if self._finished:
            await self._as_kept().send(consumer, start, stop)
            return
        if start < self._dropped:
            raise ContentGone(f"the beginning of {self.digest} is gone, as it could not be kept")

        def available(offset: int) -> Deferred[int]:
            self._senders[sender] = offset
            _fire(self._watching)
            return Deferred.fromCoroutine(self._readable_beyond(offset))

        sender = FileSending(self._workers, self._handle, consumer, available)
        self._senders[sender] = start
        _fire(self._watching)
        try:
            await sender.run(start, stop)
        finally:
            del self._senders[sender]
            _fire(self._watching)
            self._close_if_ended()

    async def read(self) -> bytes:
        """All of it, once it is finished."""
        if self.size > LARGEST_READ:
            raise ContentError(f"{self.digest} has {self.size} bytes, which is too many for a document")
        await self._until(lambda: self._finished)
        return await self._as_kept().read()

    # -- waiting --------------------------------------------------------------------------------

    async def _readable_beyond(self, offset: int) -> int:
        await self._until(lambda: self._readable > offset)
        return self._readable

    @property
    def _readable(self) -> int:
        return self.size if self._finished else min(self._written, self.size - 1)

    async def _until(self, ready: Callable[[], bool]) -> None:
        while True:
            self._raise_if_failed()
            if ready():
                return
            waiter: Deferred[None] = Deferred(lambda gone: _forget(gone, self._waiting))
            self._waiting.append(waiter)
            await waiter

    def _raise_if_failed(self) -> None:
        if self._failed is not None:
            raise self._error() from self._failed

    def _error(self) -> ContentError:
        """One for each: an exception collects the frames it was raised through, and with them their consumers."""
        why = str(self._failed) if isinstance(self._failed, K3dregError) else type(self._failed).__name__
        return ContentError(f"{self.digest} did not arrive: {why}")

    def _as_kept(self) -> IBlob:
        if self._kept is None:
            raise ContentGone(f"{self.digest} is not here any more")
        return self._kept

    def _close_if_ended(self) -> None:
        if (self._finished or self._failed is not None) and not self._senders:
            self._workers.clean_up(self._handle.close)


def _fire(waiting: list[Deferred[None]]) -> None:
    """Wake those who wait now.  What one does next may cancel another, or make it wait again."""
    woken = waiting.copy()
    waiting.clear()
    for waiter in woken:
        if not waiter.called:
            waiter.callback(None)


def _forget(waiter: Deferred[None], waiting: list[Deferred[None]]) -> None:
    if waiter in waiting:
        waiting.remove(waiter)
