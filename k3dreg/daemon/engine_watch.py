"""Makes the monitor, and logs which engine is there."""

from __future__ import annotations

from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from k3dreg import __version__
from k3dreg.config.settings import Config
from k3dreg.daemon.image_sources import EngineFileAccess
from k3dreg.docker.client import EngineClient
from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.docker.interfaces import IEngine
from k3dreg.oci.errors import EngineError
from k3dreg.reporting.logger import make_logger
from k3dreg.status.metrics import Readings
from k3dreg.status.monitor import Monitor
from k3dreg.status.source_states import source_states
from k3dreg.store.blob_store import BlobStore
from k3dreg.store.interfaces import IPushed

log = make_logger()

# Seconds between two checks of the engine.  They are for the log only, as requests find an engine that is back.
_LOOK_FOR_ENGINE = 2.0


def make_monitor(
    config: Config,
    engine: EngineClient,
    files: EngineFileAccess,
    store: BlobStore,
    pushed: IPushed,
    clock: IReactorTime,
) -> Monitor:
    """Return the monitor, whose `observer` the other packages report to."""

    def cache() -> Readings:
        used = store.usage()
        return Readings(used.bytes, used.limit, used.count, used.evicted_blobs, used.evicted_bytes)

    return Monitor(
        engine,
        clock,
        version=__version__,
        where=str(config.docker),
        cache=cache,
        pushed=pushed,
        size_of=store.size_of,
        sources=lambda info: source_states(info, files.local, files.passed, reader=config.reader),
    )


class EngineWatch(Service):
    """Logs which engine is there, when it is lost, and when it is back."""

    def __init__(
        self, engine: IEngine, description: str, clock: IReactorTime, tell: Callable[[str], object] = lambda state: None
    ) -> None:
        """`description` is the engine's address.  `tell` is called with the text of each line."""
        self._engine = engine
        self._description = description
        self._clock = clock
        self._tell = tell
        self._watching: Deferred[None] | None = None

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._watching = Deferred.fromCoroutine(self._watch())
        self._watching.addErrback(lambda failure: failure.trap(CancelledError) and None)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        known, complaint = "", ""
        while True:
            try:
                told = describe_engine(await self._engine.info())
            except EngineError as error:
                if str(error) != complaint:
                    state = f"no engine at {self._description}: {error.explained}"
                    log.warn("{state}", state=state)
                    self._tell(state)
                known, complaint = "", str(error)
            else:
                if told != known:
                    state = f"images come from {told} at {self._description}"
                    log.info("{state}", state=state)
                    self._tell(state)
                known, complaint = told, ""
            await deferLater(self._clock, _LOOK_FOR_ENGINE)


def describe_engine(info: EngineInfo) -> str:
    """Return the engine's product, version and store, as in `Docker 28.5.2, containerd image store`."""
    if info.store is ImageStore.PODMAN:
        return f"Podman {info.version}"
    return f"Docker {info.version}, {info.store.value} image store"
