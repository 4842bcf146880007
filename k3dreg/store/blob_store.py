"""The blob store that the rest of k3dreg uses in the reactor's thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from twisted.internet.interfaces import IConsumer, IDelayedCall, IReactorTime

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, ContentGone, StoreError
from k3dreg.oci.manifest import LARGEST_CONFIG
from k3dreg.reporting.logger import make_logger
from k3dreg.store.blob_files import BlobFiles
from k3dreg.store.blob_index import BlobIndex, Usage
from k3dreg.store.blob_writer import BlobWriter
from k3dreg.store.durable_files import storage_errors
from k3dreg.store.interfaces import IBlobWriter, IPassingWriter, IPins
from k3dreg.store.state_directory import StateDirectory
from k3dreg.store.unkept_bytes import UnkeptBytes
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.file_handles import FileHandle
from k3dreg.streaming.file_producer import FileSending
from k3dreg.streaming.single_flight import SingleFlight
from k3dreg.streaming.workers import Workers

T = TypeVar("T")

log = make_logger()

# Seconds for which a committed blob is not evicted, whatever the limit: time for the caller to hold or serve it.
SETTLING = 10.0
# Seconds by which the time of last use on the disk may be late.  It only decides the order of eviction after a restart.
_STAMP_EVERY = 300.0


class BlobStore:
    """Content by digest on this machine's disk, up to a size limit.  Implements `IBlobStore`.

    Create it by `open_store` and close it by `close`.  Each commit evicts the least recently used blobs beyond the
    limit.  Blobs that are held, being sent, pinned, or were committed within the last `SETTLING` seconds are never
    evicted, even if the rest still exceeds the limit.
    """

    def __init__(self, files: BlobFiles, workers: Workers, clock: IReactorTime, closed: Callable[[], None]) -> None:
        """`closed` is called at the end of `close`, even if that could not sync the blobs."""
        self._when_closed = closed
        self._files = files
        self._workers = workers
        self._clock = clock
        self._settling: dict[IDelayedCall, Digest] = {}
        self._unwanted: set[Digest] = set()  # blobs that `drop` did not remove because they were held
        self._verifying: SingleFlight[Digest, bool] = SingleFlight()
        self._closed = False

    def usage(self) -> Usage:
        """Return how much the store holds, without blobs that are still being written."""
        return self._files.index.usage()

    def set_limit(self, limit_bytes: int) -> None:
        """Set the limit in bytes.  A worker thread soon evicts what exceeds it."""
        if self._files.index.set_limit(limit_bytes) and not self._closed:
            self._workers.spare(self._files.evict)

    def size_of(self, digest: Digest) -> int:
        """Return the blob's size in bytes; 0 for an unknown digest.  Does not count as a use.  No I/O."""
        entry = self._files.index.peek(digest)
        return 0 if entry is None else entry.size

    def get(self, digest: Digest) -> IBlob | None:
        """Return the blob, or None.  Counts as a use.  No I/O."""
        entry = self._files.index.use(digest)
        if entry is None:
            return None
        now = self._clock.seconds()
        if now - entry.stamped > _STAMP_EVERY:
            entry.stamped = now
            self._workers.spare(self._files.stamp, digest, now)
        return FileBlob(self, self._files, self._workers, digest, entry.size)

    def has(self, digest: Digest) -> bool:
        """Return whether the store has the blob.  Does not count as a use.  No I/O; call it in any thread."""
        return digest in self._files.index

    def writer(self, algorithm: str = "sha256", *, durable: bool = False) -> IBlobWriter:
        """Return a writer for a new blob.  Call this and the writer's methods in worker threads.

        `durable`: once it is committed, the blob survives a power failure.  Raises `StoreError`.
        """
        return BlobWriter(self._files, algorithm, durable, self._settle)

    def passing_writer(self, algorithm: str = "sha256") -> IPassingWriter:
        """Return a writer for a new blob that goes on in memory when the disk cannot be written.

        Call this and the writer's methods in worker threads.
        """
        return BlobWriter(self._files, algorithm, False, self._settle, UnkeptBytes())

    async def put(self, data: bytes) -> Digest:
        """Store a small document and return its sha256 digest.  Raises `StoreFull` or `StoreError`.

        Cancelling does not stop the writing.
        """
        return await self._workers.run(self._put, data)

    def hold(self, digests: Iterable[Digest]) -> Callable[[], None]:
        """Do not evict these blobs, present or not, until the returned function is called.

        Further calls of that function do nothing.
        """
        held = list(digests)
        self._files.index.hold(held)

        def release() -> None:
            nonlocal held
            released, held = held, []
            self._end_hold(released)

        return release

    async def make_durable(self, digest: Digest) -> bool:
        """Make a blob survive a power failure; return False if it is missing or damaged.  Raises `StoreError`.

        A blob that a crash may have damaged is hashed first.
        """
        release = self.hold([digest])
        try:
            await self.believe(digest)
            return await self._workers.run(self._files.sync, digest)
        except ContentGone:
            return False
        finally:
            release()

    async def drop(self, digest: Digest) -> bool:
        """Remove a blob unless it is held or pinned; return whether it was removed.  Raises `StoreError`.

        A held blob is removed when its last hold ends, unless it is pinned by then.
        """
        gone = await self._workers.run(self._files.remove_unwanted, digest)
        if not gone and self._files.index.is_held(digest):
            self._unwanted.add(digest)
        return gone

    async def discard(self, digest: Digest) -> None:
        """Remove a blob, held or not.  Readers that have its file open can still read it.  Raises `StoreError`."""
        await self._workers.run(self._files.remove, digest)

    async def close(self) -> None:
        """Sync the blobs that are only in the page cache, and record a clean stop.

        No blobs can be added afterwards.  If syncing fails, an error is logged and no clean stop is recorded.
        """
        if self._closed:
            return
        self._closed = True
        for call, digest in self._settling.items():
            call.cancel()
            self._files.index.release([digest])
        self._settling.clear()
        await self._verifying.shutdown()
        try:
            await self._workers.run(self._files.stop)
        except StoreError as error:
            log.error("the store was not closed cleanly: {error}", error=error)
        finally:
            self._when_closed()

    async def believe(self, digest: Digest) -> None:
        """Hash the blob if a crash may have damaged it and it was not hashed since.

        Raises `ContentGone` if the blob was damaged, and `StoreError`.  Simultaneous callers share one hashing.
        """
        entry = self._files.index.peek(digest)
        # A blob without an entry was evicted.  Its file may still be open; if it is not, reading raises `ContentGone`.
        if entry is None or entry.verified:
            return
        if not await self._verifying.join(digest, lambda: self._workers.run(self._files.verify, digest)):
            raise ContentGone(f"{digest} was damaged; k3dreg removed it")

    def _end_hold(self, digests: list[Digest]) -> None:
        too_much = self._files.index.release(digests)
        if self._closed:
            return
        if too_much:
            self._workers.spare(self._files.evict)
        for digest in self._unwanted.intersection(digests):
            if not self._files.index.is_held(digest):
                self._unwanted.discard(digest)
                self._workers.spare(self._files.remove_unwanted, digest)

    def _put(self, data: bytes) -> Digest:
        writer = self.writer()
        writer.write(data)
        return writer.commit()

    def _settle(self, digest: Digest) -> None:
        """Release, after `SETTLING` seconds, the hold that a commit has put on `digest`.  Called in a worker thread."""
        self._workers.from_thread(self._release_later, digest)

    def _release_later(self, digest: Digest) -> None:
        if self._closed:
            self._files.index.release([digest])
            return

        def release() -> None:
            del self._settling[call]
            self._end_hold([digest])

        call = self._clock.callLater(SETTLING, release)
        self._settling[call] = digest


class FileBlob:
    """A blob in the store.  Implements `IBlob`.

    It is held, and its file is open, only while it is sent or read, so a caller need not close it.  Between `get` and
    `send` it is safe from eviction for `blob_index.JUST_USED` seconds.
    """

    def __init__(
        self,
        store: BlobStore,
        files: BlobFiles,
        workers: Workers,
        digest: Digest,
        size: int,
    ) -> None:
        self.digest = digest
        self.size = size
        self._store = store
        self._files = files
        self._workers = workers

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Write the bytes from `start` up to, not including, `stop` to `consumer`; see `FileSending.run`.

        Also raises `StoreError`.  A blob whose file is missing or damaged is removed from the store.
        """
        await self._with_file(lambda handle: FileSending(self._workers, handle, consumer).run(start, stop))

    async def read(self) -> bytes:
        """Return the bytes of a manifest or config.

        Raises `ContentError` for a blob of more than `LARGEST_CONFIG` bytes, `ContentGone` if it is missing or damaged.
        """
        if self.size > LARGEST_CONFIG:
            raise ContentError(f"{self.digest} has {self.size} bytes, which is too many for a document")
        return await self._with_file(self._read)

    async def _read(self, handle: FileHandle) -> bytes:
        data = await self._workers.run(handle.read, 0, self.size)
        if len(data) != self.size:
            raise ContentGone(f"{self.digest} is not whole on the disk any more")
        return data

    async def _with_file(self, use: Callable[[FileHandle], Awaitable[T]]) -> T:
        # Held before the file is opened, because a worker thread may be about to evict it.
        release = self._store.hold([self.digest])
        handle = FileHandle(str(self._files.path_of(self.digest)))
        try:
            await self._store.believe(self.digest)
            with storage_errors("reading a blob"):
                return await use(handle)
        except ContentGone:
            self._workers.spare(self._files.remove_if_damaged, self.digest, self.size)
            raise
        finally:
            self._workers.clean_up(handle.close)
            release()


class _NothingPinned:
    """Pins of a store that is a cache only.  Implements `IPins`."""

    def keeps(self, digest: Digest) -> bool:
        return False

    def kept(self) -> Mapping[Digest, int]:
        return {}


_NOTHING_PINNED = _NothingPinned()


async def open_store(
    root: Path,
    workers: Workers,
    limit_bytes: int,
    clock: IReactorTime,
    pins: IPins = _NOTHING_PINNED,
) -> BlobStore:
    """Open the store in the state directory `root`, which is created if needed and locked until the store is closed.

    Raises `UsageError` when another process uses the directory or it cannot be created, and as `open_store_in`.
    """
    state = await workers.acquire(StateDirectory, StateDirectory.close, root)
    try:
        return await open_store_in(state, workers, limit_bytes, clock, pins, closed=state.close)
    except BaseException:
        state.close()
        raise


async def open_store_in(
    state: StateDirectory,
    workers: Workers,
    limit_bytes: int,
    clock: IReactorTime,
    pins: IPins,
    *,
    closed: Callable[[], None] = lambda: None,
) -> BlobStore:
    """Open the store in an open state directory.  The caller closes the store before `state`.

    `pins` tells which blobs must never be evicted; those whose size differs from that in `pins` are removed now.
    `closed` is called at the end of the store's `close`.  Raises `StoreError`.
    """
    files = BlobFiles(state, BlobIndex(limit_bytes, pins.keeps, clock.seconds), pins.kept)
    await workers.run(files.start)
    store = BlobStore(files, workers, clock, closed)
    usage = store.usage()
    log.info(
        "{count} blobs kept, {size:.1f} of at most {limit:.1f} MB",
        count=usage.count,
        size=usage.bytes / 1e6,
        limit=usage.limit / 1e6,
    )
    return store
