"""A blob that can be sent while it is still being written."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, ContentGone, K3dregError
from k3dreg.oci.manifest import LARGEST_CONFIG
from k3dreg.streaming.content import IBlob, IFileHandle
from k3dreg.streaming.file_producer import FileSending
from k3dreg.streaming.workers import Workers


class ArrivingBlob:
    """A blob of known digest and size that can be sent while a writer is still appending it to a staging file, or
    to memory if the disk cannot be written.

    The writer calls `advance` after each write, and `finish` or `fail` at the end, all in the reactor's thread.  Each
    sender reads the file from its own offset at the pace of its consumer, and waits for the writer when it has caught
    up.  Senders block neither the writer nor each other.

    No sender gets the last byte before `finish`, because the bytes are verified only then.  A client that lacks a byte
    can tell that its download is incomplete.
    """

    def __init__(self, workers: Workers, digest: Digest, size: int, handle: IFileHandle) -> None:
        """`handle` reads the staging file; it now belongs to the blob.

        The blob closes it after `finish` or `fail`, as soon as the last sender has ended.
        """
        self.digest = digest
        self.size = size
        self._workers = workers
        self._handle = handle
        self._written = 0
        self._finished = False
        self._kept: IBlob | None = None
        self._failed: BaseException | None = None
        # Each sender with the offset of the first byte that it has not read from the file.
        self._senders: dict[FileSending, int] = {}
        self._watching: list[Deferred[None]] = []  # fired when a sender moves, begins or ends
        self._dropped = 0  # bytes at the beginning that the writer may have dropped
        self._unread_since = workers.clock.seconds()
        self._waiting: list[Deferred[None]] = []

    # -- the writer's side ----------------------------------------------------------------------

    def advance(self, total: int) -> None:
        """Record that the first `total` bytes are in the file, and wake the senders.

        Bytes beyond `size` are ignored.
        """
        if total > self._written:
            self._written = min(total, self.size)
            _fire(self._waiting)

    def finish(self, kept: IBlob | None) -> None:
        """Record that the whole blob is in the file and verified, and release the last byte to the senders.

        `kept` is the same blob in the store; a later `send` or `read` uses it.  None if the store does not have it.
        """
        if self._failed is None and not self._finished:
            self._written = self.size
            self._kept = kept
            self._finished = True
            _fire(self._waiting)
            self._close_if_ended()

    def fail(self, reason: Exception | Failure) -> None:
        """Record that the writer failed: every `send` and `read`, now and later, raises `ContentError`.

        That error quotes `reason` only if it is a `K3dregError`: the text of any other error may contain a path.
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
        """Return whether a new sender can begin at the first byte."""
        return self._dropped == 0

    @property
    def unread_for(self) -> float:
        """Return for how many seconds there has been no sender."""
        return 0.0 if self._senders else self._workers.clock.seconds() - self._unread_since

    async def drop_read(self, most: int, max_wait: float) -> int:
        """Wait until there is a sender and every sender has all but `most` of the bytes written so far.

        Returns the offset before which the writer may drop its bytes; no new sender can begin before it from then on.
        Raises Twisted's `TimeoutError` after `max_wait` seconds without a sender.
        """
        while not self._senders or self._written - min(self._senders.values()) > most:
            moved: Deferred[None] = Deferred(lambda gone: _forget(gone, self._watching))
            self._watching.append(moved)
            await (moved if self._senders else moved.addTimeout(max_wait, self._workers.clock))
        self._dropped = min(self._senders.values())
        return self._dropped

    # -- IBlob ----------------------------------------------------------------------------------

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Write the bytes from `start` up to, not including, `stop` to `consumer`, as they arrive.

        Returns and raises as `FileSending.run`.  Also raises `ContentError` after `fail`, and `ContentGone` when the
        writer has dropped the byte at `start`.
        """
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
            self._unread_since = self._workers.clock.seconds()
            _fire(self._watching)
            self._close_if_ended()

    async def read(self) -> bytes:
        """Wait for `finish`, and return the whole blob from the store.

        Raises `ContentError` for a blob of more than `LARGEST_CONFIG` bytes and after `fail`; `ContentGone` when the
        store does not have it.
        """
        if self.size > LARGEST_CONFIG:
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
        """Return a new error for each sender: a raised exception keeps alive the frames that it passed through."""
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
    """Fire the Deferreds that wait now.  A callback may cancel another of them or add a new one to `waiting`."""
    woken = waiting.copy()
    waiting.clear()
    for waiter in woken:
        if not waiter.called:
            waiter.callback(None)


def _forget(waiter: Deferred[None], waiting: list[Deferred[None]]) -> None:
    if waiter in waiting:
        waiting.remove(waiter)
