"""The blob store as the rest of k3dreg sees it, in the reactor's thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
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
from k3dreg.store.interfaces import IBlobWriter, IPassingWriter
from k3dreg.store.state_directory import StateDirectory
from k3dreg.store.unkept_bytes import UnkeptBytes
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.file_handles import FileHandle
from k3dreg.streaming.file_producer import FileSending
from k3dreg.streaming.single_flight import SingleFlight
from k3dreg.streaming.workers import Workers

T = TypeVar("T")

log = make_logger()

# Seconds for which a committed blob is not evicted, whatever the limit: time for its writer to hold it, or serve it.
SETTLING = 10.0
# Seconds for which the time of last use on the disk may lag: it only matters for what is evicted after a restart.
_STAMP_EVERY = 300.0


class BlobStore:
    """Content by digest on this machine's disk, up to a size.  Made by `open_store`.

    Beyond the limit, the least recently used blobs are evicted, after each commit.  Never those that are held, being
    sent, committed within the last `SETTLING` seconds, or pinned, even when that leaves more than the limit.
    """

    def __init__(self, shelf: BlobFiles, workers: Workers, clock: IReactorTime, closed: Callable[[], None]) -> None:
        """`closed` is called at the end of `close`."""
        self._when_closed = closed
        self._shelf = shelf
        self._workers = workers
        self._clock = clock
        self._settling: dict[IDelayedCall, Digest] = {}
        self._unwanted: set[Digest] = set()  # those that `drop` left because they were held
        self._verifying: SingleFlight[Digest, bool] = SingleFlight()
        self._closed = False

    def usage(self) -> Usage:
        """How much is held, without what is still being written."""
        return self._shelf.index.usage()

    def set_limit(self, limit_bytes: int) -> None:
        """Keep no more than this from now on.  What is too much is evicted soon."""
        if self._shelf.index.set_limit(limit_bytes) and not self._closed:
            self._workers.spare(self._shelf.evict)

    def size_of(self, digest: Digest) -> int:
        """Bytes; 0 for a blob that is not here.  Not a use.  No I/O."""
        entry = self._shelf.index.peek(digest)
        return 0 if entry is None else entry.size

    def get(self, digest: Digest) -> IBlob | None:
        """The blob, or None.  Counts as a use.  No I/O."""
        entry = self._shelf.index.use(digest)
        if entry is None:
            return None
        now = self._clock.seconds()
        if now - entry.stamped > _STAMP_EVERY:
            entry.stamped = now
            self._workers.spare(self._shelf.stamp, digest, now)
        return FileBlob(self, self._shelf, self._workers, digest, entry.size)

    def has(self, digest: Digest) -> bool:
        """Whether it is here.  In any thread."""
        return digest in self._shelf.index

    def writer(self, algorithm: str = "sha256", *, durable: bool = False) -> IBlobWriter:
        """A writer for one more blob, for worker threads.  `durable`: it is to survive a power failure."""
        return BlobWriter(self._shelf, algorithm, durable, self._settle)

    def passing_writer(self, algorithm: str = "sha256") -> IPassingWriter:
        """A writer for one more blob that goes on in memory when the disk cannot be written, for worker threads."""
        return BlobWriter(self._shelf, algorithm, False, self._settle, UnkeptBytes())

    async def put(self, data: bytes) -> Digest:
        """Keep a small document.  Cancelling does not stop it."""
        return await self._workers.run(self._put, data)

    def hold(self, digests: Iterable[Digest]) -> Callable[[], None]:
        """Keep these from being evicted until the returned function is called (again is no error)."""
        held = list(digests)
        self._shelf.index.hold(held)

        def release() -> None:
            nonlocal held
            released, held = held, []
            self._end_hold(released)

        return release

    async def make_durable(self, digest: Digest) -> bool:
        """Sync a blob that was only cached, after hashing it if it may have been damaged.  Raises `StoreError`."""
        release = self.hold([digest])
        try:
            await self.believe(digest)
            return await self._workers.run(self._shelf.sync, digest)
        except ContentGone:
            return False
        finally:
            release()

    async def drop(self, digest: Digest) -> bool:
        """Remove a blob unless it is held or pinned; returns whether it is gone.  Raises `StoreError`.

        One that is held is removed when its hold ends, unless it is pinned by then.
        """
        gone = await self._workers.run(self._shelf.remove_unwanted, digest)
        if not gone and self._shelf.index.is_held(digest):
            self._unwanted.add(digest)
        return gone

    async def discard(self, digest: Digest) -> None:
        """Remove a blob, held or not.  Whoever is reading it reads on.  Raises `StoreError`."""
        await self._workers.run(self._shelf.remove, digest)

    async def close(self) -> None:
        """Sync what is only in the kernel's cache.

        Blobs cannot be added afterwards.  When it cannot be synced it does not count as a clean stop.
        """
        if self._closed:
            return
        self._closed = True
        for call, digest in self._settling.items():
            call.cancel()
            self._shelf.index.release([digest])
        self._settling.clear()
        await self._verifying.shutdown()
        try:
            await self._workers.run(self._shelf.stop)
        except StoreError as error:
            log.error("the store was not closed cleanly: {error}", error=error)
        finally:
            self._when_closed()

    async def believe(self, digest: Digest) -> None:
        """Return when the blob can be served; hashes it if it may have been damaged.  Raises `ContentGone`."""
        entry = self._shelf.index.peek(digest)
        # One that is not in the index any more was evicted, and its file may be open or gone: that is seen on reading.
        if entry is None or entry.verified:
            return
        if not await self._verifying.join(digest, lambda: self._workers.run(self._shelf.verify, digest)):
            raise ContentGone(f"{digest} was damaged; k3dreg removed it")

    def _end_hold(self, digests: list[Digest]) -> None:
        too_much = self._shelf.index.release(digests)
        if self._closed:
            return
        if too_much:
            self._workers.spare(self._shelf.evict)
        for digest in self._unwanted.intersection(digests):
            if not self._shelf.index.is_held(digest):
                self._unwanted.discard(digest)
                self._workers.spare(self._shelf.remove_unwanted, digest)

    def _put(self, data: bytes) -> Digest:
        writer = self.writer()
        writer.write(data)
        return writer.commit()

    def _settle(self, digest: Digest) -> None:
        """In a worker thread: the commit has held the digest; release it after a while."""
        self._workers.from_thread(self._release_later, digest)

    def _release_later(self, digest: Digest) -> None:
        if self._closed:
            self._shelf.index.release([digest])
            return

        def release() -> None:
            del self._settling[call]
            self._end_hold([digest])

        call = self._clock.callLater(SETTLING, release)
        self._settling[call] = digest


class FileBlob:
    """A blob in the store.

    It is held, and its file is open, only while it is sent or read, so a caller need not close it.  Between `get` and
    that it is safe from eviction as one that was just used.
    """

    def __init__(
        self,
        store: BlobStore,
        shelf: BlobFiles,
        workers: Workers,
        digest: Digest,
        size: int,
    ) -> None:
        self.digest = digest
        self.size = size
        self._store = store
        self._shelf = shelf
        self._workers = workers

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Ends and raises as `send_file`; a blob found to be gone or damaged is forgotten."""
        await self._with_file(lambda handle: FileSending(self._workers, handle, consumer).run(start, stop))

    async def read(self) -> bytes:
        """All of a manifest or config.  Raises `ContentGone` as `send`, and `ContentError` for a larger blob."""
        if self.size > LARGEST_CONFIG:
            raise ContentError(f"{self.digest} has {self.size} bytes, which is too many for a document")
        return await self._with_file(self._read)

    async def _read(self, handle: FileHandle) -> bytes:
        data = await self._workers.run(handle.read, 0, self.size)
        if len(data) != self.size:
            raise ContentGone(f"{self.digest} is not whole on the disk any more")
        return data

    async def _with_file(self, use: Callable[[FileHandle], Awaitable[T]]) -> T:
        # Before the file is opened: it may be being evicted at this moment.
        release = self._store.hold([self.digest])
        handle = FileHandle(str(self._shelf.path_of(self.digest)))
        try:
            await self._store.believe(self.digest)
            with storage_errors("reading a blob"):
                return await use(handle)
        except ContentGone:
            self._workers.spare(self._shelf.remove_if_damaged, self.digest, self.size)
            raise
        finally:
            self._workers.clean_up(handle.close)
            release()


async def open_store(
    root: Path,
    workers: Workers,
    limit_bytes: int,
    clock: IReactorTime,
    *,
    is_pinned: Callable[[Digest], bool] = lambda digest: False,
) -> BlobStore:
    """The store in the state directory `root`, which is made if need be and ours alone until the store is closed.

    Raises `UsageError` when the directory is in use or cannot be, and as `open_store_in` does.
    """
    state = await workers.acquire(StateDirectory, StateDirectory.close, root)
    try:
        return await open_store_in(state, workers, limit_bytes, clock, is_pinned=is_pinned, closed=state.close)
    except BaseException:
        state.close()
        raise


async def open_store_in(
    state: StateDirectory,
    workers: Workers,
    limit_bytes: int,
    clock: IReactorTime,
    *,
    is_pinned: Callable[[Digest], bool],
    closed: Callable[[], None] = lambda: None,
    pushed_sizes: Mapping[Digest, int] = MappingProxyType({}),
) -> BlobStore:
    """The store in a state directory that is ours, to be closed before that is; `closed` is called at its end.

    `is_pinned` says what is never evicted; it is called in worker threads and must be quick.  Blobs that have another
    size than in `pushed_sizes` are removed.  Raises `StoreError`.
    """
    shelf = BlobFiles(state, BlobIndex(limit_bytes, is_pinned, clock.seconds), pushed_sizes)
    await workers.run(shelf.start)
    store = BlobStore(shelf, workers, clock, closed)
    usage = store.usage()
    log.info(
        "{count} blobs kept, {size:.1f} of at most {limit:.1f} MB",
        count=usage.count,
        size=usage.bytes / 1e6,
        limit=usage.limit / 1e6,
    )
    return store
