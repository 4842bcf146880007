"""Blobs that arrive: served meanwhile, verified, and kept if the disk can be written."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Hashable

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.defer import TimeoutError as TimedOut

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, EngineUnavailable, K3dregError, StoreError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.interfaces import IBlobStore, IPassingWriter
from k3dreg.streaming.arriving_blob import ArrivingBlob
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.outcome import Outcome
from k3dreg.streaming.workers import Workers

log = make_logger()

# Bytes of a blob that cannot be kept that may be in memory unread before its producer waits for the readers.  The
# producer's last write comes on top: up to 8 MiB of a layer's files.
WINDOW = 4 * 1024 * 1024
# Seconds for which a blob that cannot be kept waits for a reader.  The client that asked for it begins at once.
READER_WAIT = 10.0


class Arrival:
    """One blob that arrives, as its producer sees it.

    The producer calls `begin` as soon as it knows the size, which lets clients read, and then writes all bytes with
    `write`.  It may write with `writer` in worker threads instead, and call `advance` after each write.  It may call
    `verify` after the last byte; otherwise `Arrivals` does.

    If the disk cannot be written, the bytes go to the readers only, and the producer waits for them.
    """

    writer: IPassingWriter

    def __init__(self, workers: Workers, digest: Digest | None, *, must_be_kept: bool = False) -> None:
        """`digest` is None until `verify` if it is not known.  `must_be_kept`: a write to a full disk fails."""
        self.digest = digest
        self.blob: ArrivingBlob | None = None
        # The blob as soon as it can be read, and the verified blob in the store.
        self.opened: Outcome[IBlob] = Outcome()
        self.whole: Outcome[IBlob] = Outcome()
        self._workers = workers
        self._must_be_kept = must_be_kept
        self._is_verified = False
        self._told = False

    @property
    def written(self) -> int:
        """Return how many bytes have been written."""
        return self.writer.written

    @property
    def has_beginning(self) -> bool:
        """Return whether a new reader can begin at the first byte."""
        return self.blob is None or self.blob.has_beginning

    @property
    def unread_for(self) -> float:
        """Return for how many seconds no client has read the blob; before `begin`, infinity if none waits for it."""
        if self.blob is not None:
            return self.blob.unread_for
        return 0.0 if self.opened.waiting or self.whole.waiting else math.inf

    async def begin(self, size: int) -> None:
        """Let clients read the blob, which has `size` bytes.  Call it once, and only if the digest is known.

        An empty blob has no byte that could be held back until it is verified, so clients wait until then.
        """
        if size:
            assert self.digest is not None
            handle = await self._workers.acquire(self.writer.open_reader, lambda handle: handle.close())
            self.blob = ArrivingBlob(self._workers, self.digest, size, handle)
            self.blob.advance(self.written)
            self.opened.succeed(self.blob)

    async def write(self, data: bytes | memoryview) -> None:
        """Append `data` in a worker thread, and then do as `advance`."""
        await self._workers.run(self.writer.write, data)
        await self.advance()

    async def advance(self) -> None:
        """Tell the readers how many bytes have been written; wait for the readers if the blob cannot be kept.

        Raises the writer's `StoreError` when the blob cannot be kept and `begin` was not called, or no client has read
        it for `READER_WAIT` seconds.
        """
        if self.blob is not None:
            self.blob.advance(self.written)
        await self._wait_for_readers(WINDOW)

    async def verify(self) -> None:
        """Verify the blob, and keep it if the disk can be written.

        The readers get the last byte after that, when the producer has ended.  Raises `DigestMismatch`, and as
        `advance`.
        """
        if not self._is_verified:
            size = None if self.blob is None else self.blob.size
            self.digest = await self._workers.run(self.writer.commit, self.digest, size)
            self._is_verified = True
            # Bytes that are only in memory are lost after the end, so the readers must have them before.
            await self._wait_for_readers(1)

    def finish(self, kept: IBlob | None) -> IBlob:
        """Release the last byte to the readers.  `kept` is the blob in the store, None if it was not kept.

        Returns `kept`.  Raises `StoreError` if there is none.
        """
        if self.blob is not None:
            self.blob.finish(kept)
        if kept is not None:
            self.opened.succeed(kept)
            self.whole.succeed(kept)
            return kept
        error = self.writer.unkept or StoreError(f"{self.digest} was evicted as soon as k3dreg had stored it")
        self.opened.fail(error)
        self.whole.fail(error)
        raise error

    def fail(self, reason: K3dregError) -> None:
        """Fail for all that read the blob or wait for it."""
        self.opened.fail(reason)
        self.whole.fail(reason)
        if self.blob is not None:
            self.blob.fail(reason)

    async def _wait_for_readers(self, most: int) -> None:
        error = self.writer.unkept
        if error is None:
            return
        if self.blob is None or self._must_be_kept:
            raise error
        if not self._told:
            self._told = True
            log.warn("{digest} is sent without being kept: {error}", digest=self.digest, error=error)
        try:
            read = await self.blob.drop_read(most, READER_WAIT)
        except TimedOut:
            raise error from None
        self.writer.discard_before(read)


# Writes the whole blob.  What it raises fails the blob for its readers; before `Arrival.begin`, it fails `open`.
Fill = Callable[[Arrival], Awaitable[None]]


class Arrivals:
    """The blobs that arrive now: one arrival for all clients that want the same blob.

    A blob arrives whether or not clients read it, until it has ended or `shutdown` cancels it.  A client that comes
    when the beginning of a blob that cannot be kept is gone begins a new arrival.
    """

    def __init__(self, store: IBlobStore, workers: Workers) -> None:
        self._store = store
        self._workers = workers
        # The arrivals that new readers may join.
        self._arriving: dict[tuple[Digest | None, Hashable], Arrival] = {}
        self._running: set[Deferred[IBlob]] = set()
        self._closed = False

    def find(self, digest: Digest) -> IBlob | None:
        """Return the blob from the store, or one that arrives without a `key` and can be read; else None.  No I/O."""
        kept = self._store.get(digest)
        arrival = self._arriving.get((digest, None))
        return arrival.blob if kept is None and arrival is not None and arrival.has_beginning else kept

    async def open(self, digest: Digest, fill: Fill, key: Hashable = None) -> IBlob:
        """Return the blob from the store, or as soon as it can be read, from an arrival that `fill` fills.

        Concurrent calls with the same `key` share one arrival, which cancelling a call does not stop.  `key` stands for
        the right to read the blob where it comes from.  Raises what `fill` raises before it calls `Arrival.begin`.
        """
        return self._store.get(digest) or await self._join(digest, fill, key, lambda arrival: arrival.opened)

    async def fetch(self, digest: Digest, fill: Fill, key: Hashable = None) -> IBlob:
        """Return the blob when it is verified and in the store; else as `open`.

        Raises what `fill` raises, `DigestMismatch`, and `StoreError` if it cannot be kept.
        """
        return self._store.get(digest) or await self._join(digest, fill, key, lambda arrival: arrival.whole)

    async def bring(self, digest: Digest | None, fill: Fill) -> IBlob:
        """Fill a new arrival, which `open` may join, and return the blob when it is verified and in the store.

        `digest` is None if it is not known; `fill` then does not call `Arrival.begin`.  Raises what `fill` raises,
        `DigestMismatch`, and `StoreError` if the disk cannot be written.  Cancelling stops the arrival.
        """
        return await self._run(Arrival(self._workers, digest, must_be_kept=True), fill, None)

    def shutdown(self) -> Deferred[None]:
        """Refuse new arrivals and cancel those that `open` and `fetch` began; fires when they have ended."""
        self._closed = True
        running = list(self._running)
        for each in running:
            each.cancel()
        return DeferredList(running).addCallback(lambda _: None)

    def _join(
        self, digest: Digest, fill: Fill, key: Hashable, outcome: Callable[[Arrival], Outcome[IBlob]]
    ) -> Deferred[IBlob]:
        arrival = self._arriving.get((digest, key))
        if arrival is not None and arrival.has_beginning:
            return outcome(arrival).wait()
        if self._closed:
            raise EngineUnavailable("k3dreg is stopping")
        arrival = Arrival(self._workers, digest)
        waiting = outcome(arrival).wait()
        running = Deferred.fromCoroutine(self._run(arrival, fill, key))
        self._running.add(running)
        running.addBoth(lambda _: self._running.discard(running))  # a failure was passed to the readers
        return waiting

    async def _run(self, arrival: Arrival, fill: Fill, key: Hashable) -> IBlob:
        at = (arrival.digest, key)
        self._arriving[at] = arrival
        algorithm = "sha256" if arrival.digest is None else arrival.digest.algorithm
        try:
            arrival.writer = await self._workers.acquire(
                self._store.passing_writer, lambda writer: writer.abort(), algorithm
            )
            try:
                await fill(arrival)
                await arrival.verify()
            except BaseException:
                self._workers.clean_up(arrival.writer.abort)
                raise
        except Exception as error:
            self._forget(at, arrival)
            arrival.fail(_reason(error, arrival))
            raise
        self._forget(at, arrival)
        assert arrival.digest is not None
        return arrival.finish(self._store.get(arrival.digest))

    def _forget(self, at: tuple[Digest | None, Hashable], arrival: Arrival) -> None:
        """Let no new reader join.  Before the readers learn of the end: one may ask again at once."""
        if self._arriving.get(at) is arrival:
            del self._arriving[at]


def _reason(error: Exception, arrival: Arrival) -> K3dregError:
    """Return the error for those that wait for the arrival.  The text of an unexpected error may contain a path."""
    if isinstance(error, K3dregError):
        return error
    if isinstance(error, CancelledError):
        return EngineUnavailable("k3dreg is stopping")
    log.failure("{digest} did not arrive: k3dreg failed", digest=arrival.digest)
    return ContentError("k3dreg failed; its log says where")
