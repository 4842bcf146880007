"""A pool of reader containers, each used by one request at a time."""

from __future__ import annotations

from collections import deque

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.engine_files.layout import engine_directories
from k3dreg.engine_files.reader_containers import Reader, ReaderContainers
from k3dreg.oci.errors import EngineError, EngineUnavailable, FilesUnreachable, K3dregError
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.negative_cache import NegativeCache
from k3dreg.streaming.outcome import Outcome

log = make_logger()

# Reader containers.  The engine reads one archive at a time from a container, and even a HEAD waits for it.  A node
# fetches three blobs at a time; the fourth reader is for small files, which must not wait for blobs.
SIZE = 4
# Seconds for which an engine that refused to create a container is not asked again: long enough to keep its log
# short, and short enough to notice soon that an administrator allows it now.
REFUSED_FOR = 300.0
# Seconds between attempts to create the readers that are missing from the pool.
_AGAIN = 60.0
# Seconds that k3dreg's stop waits for the engine to name and remove containers of an earlier run.
_MAX_WAIT = 3.0


@define(eq=False)
class _Asker:
    long: bool
    woken: Deferred[None] = field(factory=Deferred)


class ReaderPool:
    """A pool of reader containers, created at the first `acquire`, and again after they were removed from outside.

    Long reads leave one reader free, so that short reads never wait for a blob.  The owner calls `close` in the end.
    """

    def __init__(self, engine: IEngineRequests, clock: IReactorTime, owner: str, size: int = SIZE) -> None:
        """`owner`: see `ReaderContainers`."""
        self._engine = engine
        self._clock = clock
        self._containers = ReaderContainers(engine, owner)
        self._size = size
        self._readers: list[Reader] = []
        self._free: list[Reader] = []
        self._long = 0
        self._queue: deque[_Asker] = deque()
        self._first: Outcome[None] | None = None  # set when the first of the readers that are being created exists
        self._settled: Outcome[None] = Outcome()  # set when no more readers are being created
        self._making: Deferred[None] | None = None
        self._again_at = 0.0  # when missing readers may be created again
        self._refused: NegativeCache[None] = NegativeCache(clock)
        self._closed = False

    async def prepare(self) -> None:
        """Create the readers, and return when all exist or their creation has failed.  Raises as `acquire`."""
        await self._ensure()
        await self._settled.wait()

    async def acquire(self, *, long: bool) -> Reader:
        """Return a reader for the caller alone, which must `release` it.  Waiting callers are served in their order.

        `long` is for reads of a blob or a layer, which may take long.  Raises `EngineUnavailable`, and
        `FilesUnreachable` while the engine refuses to create containers.  Cancelling leaves the queue.
        """
        await self._ensure()
        while not self._may_take(long):
            asker = _Asker(long)
            self._queue.append(asker)
            try:
                await asker.woken
            finally:
                if asker in self._queue:
                    self._queue.remove(asker)
            await self._ensure()
        self._long += long
        return self._free.pop()

    def release(self, reader: Reader, *, long: bool) -> None:
        """Return `reader` to the pool, for the next caller that waits.  `long` as it was for `acquire`."""
        self._long -= long
        if reader in self._readers:
            self._free.append(reader)
        self._wake()

    def discard(self, reader: Reader) -> None:
        """Forget all readers, because the engine does not have the container of `reader` any more.

        Others were probably removed with it; the next `acquire` finds those that exist.  The caller still releases
        `reader`.
        """
        if reader in self._readers:
            self._readers, self._free = [], []
            for asker in list(self._queue):  # no `release` will wake them: the released readers are forgotten
                self._wake_one(asker)

    async def has_lost(self, reader: Reader) -> bool:
        """Return whether the container of `reader` was removed, or its removal has begun.

        Raises `FilesUnreachable` when the engine's answer does not tell, and `EngineUnavailable`.
        """
        try:
            return not await self._containers.is_there(reader.id)
        except EngineUnavailable:
            raise
        except EngineError as error:
            raise FilesUnreachable(f"Docker did not describe k3dreg's reader containers: {error}") from error

    async def close(self) -> None:
        """Remove the containers.  Waiting callers of `acquire` get `FilesUnreachable`.  Failures are logged."""
        self._closed = True
        if self._making is None:
            await self._remove_left_behind()
        else:
            await self._making
        for asker in list(self._queue):
            self._wake_one(asker)
        readers, self._readers, self._free = self._readers, [], []
        for reader in readers:
            try:
                await self._containers.remove(reader.id)
            except K3dregError as error:
                log.warn("the reader container {id} could not be removed: {error}", id=reader.id[:12], error=error)

    async def _remove_left_behind(self) -> None:
        """Remove the containers of an earlier run that was killed, if this one has not used them."""
        removing = Deferred.fromCoroutine(self._containers.remove_all())
        try:
            await removing.addTimeout(_MAX_WAIT, self._clock)
        except (EngineError, TimedOut) as error:
            log.debug("containers that an earlier k3dreg left in Docker could not be removed: {error}", error=error)

    def _may_take(self, long: bool) -> bool:
        return bool(self._free) and not (long and self._long >= max(1, len(self._readers) - 1))

    def _wake(self) -> None:
        for asker in list(self._queue):
            if self._may_take(asker.long):
                self._wake_one(asker)

    def _wake_one(self, asker: _Asker) -> None:
        if asker in self._queue:
            self._queue.remove(asker)
            asker.woken.callback(None)

    async def _ensure(self) -> None:
        """Return when there is at least one reader for the directories that the engine has now.

        Starts to create missing readers.  Raises as `acquire`.
        """
        if self._closed:
            raise FilesUnreachable("k3dreg is stopping")
        self._refused.check(None)
        if self._readers:
            if self._readers[0].directories in engine_directories(await self._engine.info()):
                if len(self._readers) < self._size and self._settled.is_set and self._clock.seconds() >= self._again_at:
                    self._begin_making()
                return
            # Another engine answers now, or the same one with its other image store.
            self._readers, self._free = [], []
        if self._first is None or self._first.is_set:
            self._begin_making()
        assert self._first is not None
        await self._first.wait()

    def _begin_making(self) -> None:
        self._again_at = self._clock.seconds() + _AGAIN
        self._first, self._settled = Outcome(), Outcome()
        self._making = Deferred.fromCoroutine(self._make(self._first, self._settled))

    async def _make(self, first: Outcome[None], settled: Outcome[None]) -> None:
        """Use the containers of an earlier run, and create the missing ones."""

        def made(reader: Reader) -> None:
            if reader not in self._readers:  # `find` also returns the readers of this process
                self._readers.append(reader)
                self._free.append(reader)
            first.succeed(None)
            self._wake()

        try:
            info = await self._engine.info()
            found = await self._containers.find(info)
            for reader in found[: self._size]:
                made(reader)
            if len(found) < self._size:
                await self._containers.make(info, self._size - len(found), made)
        except CancelledError:
            first.fail(FilesUnreachable("k3dreg is stopping"))
        except EngineError as error:
            if first.is_set:
                log.warn(
                    "Docker did not create all reader containers, or did not remove their image: {error}", error=error
                )
            elif isinstance(error, EngineUnavailable | FilesUnreachable):
                first.fail(error)
            else:
                first.fail(self._refuse(error))
        except Exception as error:  # noqa: BLE001  (callers that wait must get an error, whatever it is)
            first.fail(FilesUnreachable("making a reader container failed inside k3dreg"))
            log.failure("making a reader container failed: {error}", error=error)
        finally:
            settled.succeed(None)

    def _refuse(self, error: EngineError) -> FilesUnreachable:
        refusal = FilesUnreachable(f"Docker refused to create a reader container: {error}")
        self._refused.remember(None, refusal, REFUSED_FOR)
        log.warn(
            "{refusal}; k3dreg exports images instead, and asks Docker again in {minutes:.0f} minutes",
            refusal=refusal,
            minutes=REFUSED_FOR / 60,
        )
        return refusal
