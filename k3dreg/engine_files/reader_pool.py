"""A few reader containers, lent to one at a time."""

from __future__ import annotations

from collections import deque

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.engine_files.layout import engine_directories
from k3dreg.engine_files.reader_containers import Reader, ReaderContainers
from k3dreg.oci.errors import EngineError, EngineUnavailable, FilesUnreachable, K3dregError
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.outcome import Outcome

log = make_logger()

# The engine reads one archive at a time from a container, and even a HEAD waits for it.  A node fetches three blobs at
# a time; the fourth reader is for small things, which must not wait behind them.
SIZE = 4
# Seconds for which an engine that refused is not asked again: long enough not to be a nuisance in its log, short
# enough to notice soon that an administrator has allowed it.
REFUSED_FOR = 300.0
# Seconds after which it is tried again to make readers of which not all could be made.
_AGAIN = 60.0


@define(eq=False)
class _Asker:
    long: bool
    woken: Deferred[None] = field(factory=Deferred)


class ReaderPool:
    """Lends the readers; makes them when the first is asked for, and again when somebody has removed them.

    Those for long reads leave one reader free, so that small ones never wait for a blob.
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
        self._first: Outcome[None] | None = None  # set when one of those that are being made is there
        self._settled: Outcome[None] = Outcome()  # set when there is nothing more to be made
        self._making: Deferred[None] | None = None
        self._again_at = 0.0  # when it is tried again to make those that are missing
        self._refused_until = 0.0
        self._refusal = ""
        self._closed = False

    async def prepare(self) -> None:
        """Have all the readers made.  Raises as `acquire`."""
        await self._ensure()
        await self._settled.wait()

    async def acquire(self, *, long: bool) -> Reader:
        """A reader of one's own, until `release`.  First come, first served.

        Raises `FilesUnreachable` while the engine refuses, `EngineUnavailable`.
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
        """Give it back."""
        self._long -= long
        if reader in self._readers:
            self._free.append(reader)
        self._wake()

    def discard(self, reader: Reader) -> None:
        """The engine does not know this container any more.  It is still to be released.

        Whoever removed one most likely removed them all; those that are left are found again.
        """
        if reader in self._readers:
            self._readers, self._free = [], []
            for asker in list(self._queue):  # nobody else is going to give one back
                self._wake_one(asker)

    async def has_lost(self, reader: Reader) -> bool:
        """Whether somebody has removed the container, or begun to.

        Raises `FilesUnreachable` when the engine does not say, `EngineUnavailable`.
        """
        try:
            return not await self._containers.is_there(reader.id)
        except EngineUnavailable:
            raise
        except EngineError as error:
            raise FilesUnreachable(f"Docker did not describe k3dreg's reader containers: {error}") from error

    async def close(self) -> None:
        """Remove the containers."""
        self._closed = True
        if self._making is not None:
            await self._making
        for asker in list(self._queue):
            self._wake_one(asker)
        readers, self._readers, self._free = self._readers, [], []
        for reader in readers:
            try:
                await self._containers.remove(reader.id)
            except K3dregError as error:
                log.warn("the reader container {id} could not be removed: {error}", id=reader.id[:12], error=error)

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
        """See to it that there are readers, for the directories that the engine has now; one is enough to go on."""
        if self._closed:
            raise FilesUnreachable("k3dreg is stopping")
        if self._clock.seconds() < self._refused_until:
            raise FilesUnreachable(self._refusal)
        if self._readers:
            if self._readers[0].directories in engine_directories(await self._engine.info()):
                if len(self._readers) < self._size and self._settled.is_set and self._clock.seconds() >= self._again_at:
                    self._begin_making()
                return
            # It came back as another engine, or with its other image store.
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
        """Take the containers of an earlier run, and make what is missing."""

        def made(reader: Reader) -> None:
            if reader not in self._readers:  # it may be one of ours
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
                self._refuse(error)
                first.fail(FilesUnreachable(self._refusal))
        except Exception as error:  # noqa: BLE001  (those who wait have to hear of it, whatever it is)
            first.fail(FilesUnreachable("making a reader container failed inside k3dreg"))
            log.failure("making a reader container failed: {error}", error=error)
        finally:
            settled.succeed(None)

    def _refuse(self, error: EngineError) -> None:
        self._refusal = f"Docker refused to create a reader container: {error}"
        self._refused_until = self._clock.seconds() + REFUSED_FOR
        log.warn(
            "{refusal}; k3dreg exports images instead, and asks Docker again in {minutes:.0f} minutes",
            refusal=self._refusal,
            minutes=REFUSED_FOR / 60,
        )
