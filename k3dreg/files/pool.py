"""A few reader containers, lent to one at a time."""

from __future__ import annotations

from collections import deque

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from k3dreg.files.containers import Reader, ReaderContainers
from k3dreg.interfaces import IEngineRequests
from k3dreg.log import make_logger
from k3dreg.model.engine_files import engine_directories
from k3dreg.model.errors import EngineError, EngineUnavailable, FilesUnreachable, K3dregError
from k3dreg.streaming.flights import Flights

log = make_logger()

# The engine reads one archive at a time from a container, and even a HEAD waits for it.  A node fetches three blobs at
# a time; the fourth reader is for small things, which must not wait behind them.
SIZE = 4
# Seconds for which an engine that refused is not asked again: long enough not to be a nuisance in its log, short
# enough to notice soon that an administrator has allowed it.
REFUSED_FOR = 300.0


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
        self._making: Flights[str, None] = Flights()
        self._refused_until = 0.0
        self._refusal = ""
        self._closed = False

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

    async def close(self) -> None:
        """Remove the containers."""
        self._closed = True
        await self._making.shutdown()
        for asker in list(self._queue):
            self._wake_one(asker)
        readers, self._readers, self._free = self._readers, [], []
        for reader in readers:
            try:
                await self._containers.remove(reader.id)
            except K3dregError as error:
                log.warn("the reader container {id} could not be removed: {error}", id=reader.id[:12], error=error)

    def _may_take(self, long: bool) -> bool:
        return bool(self._free) and not (long and self._size > 1 and self._long >= self._size - 1)

    def _wake(self) -> None:
        for asker in list(self._queue):
            if self._may_take(asker.long):
                self._wake_one(asker)

    def _wake_one(self, asker: _Asker) -> None:
        if asker in self._queue:
            self._queue.remove(asker)
            asker.woken.callback(None)

    async def _ensure(self) -> None:
        """See to it that there are readers, for the directories that the engine has now."""
        if self._closed:
            raise FilesUnreachable("k3dreg is stopping")
        if self._clock.seconds() < self._refused_until:
            raise FilesUnreachable(self._refusal)
        if self._readers:
            if self._readers[0].directories in engine_directories(await self._engine.info()):
                return
            # It came back as another engine, or with its other image store.
            self._readers, self._free = [], []
        if not self._readers:
            await self._making.join("", self._make)

    async def _make(self) -> None:
        """Take the containers of an earlier run, and make what is missing."""
        info = await self._engine.info()
        try:
            readers = (await self._containers.find(info))[: self._size]
            if len(readers) < self._size:
                readers += await self._containers.make(info, self._size - len(readers))
        except (EngineUnavailable, FilesUnreachable):
            raise
        except EngineError as error:
            self._refusal = f"Docker refuses a container to read its files through: {error}"
            self._refused_until = self._clock.seconds() + REFUSED_FOR
            log.warn(
                "{refusal}; images are exported instead, and it is asked again in {minutes:.0f} minutes",
                refusal=self._refusal,
                minutes=REFUSED_FOR / 60,
            )
            raise FilesUnreachable(self._refusal) from error
        self._readers, self._free = readers, list(readers)
        self._wake()
