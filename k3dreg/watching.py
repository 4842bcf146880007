"""Joins what watches the daemon to what it watches."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from k3dreg import __version__
from k3dreg.config import Config
from k3dreg.engine.client import Engine
from k3dreg.files.local import LocalFiles
from k3dreg.insight.metrics import Readings
from k3dreg.insight.monitor import Monitor
from k3dreg.insight.source_states import source_states
from k3dreg.interfaces import IPushed
from k3dreg.store.blobs import BlobStore
from k3dreg.streaming.workers import Workers


def make_monitor(
    config: Config, engine: Engine, store: BlobStore, pushed: IPushed, workers: Workers, clock: IReactorTime
) -> Monitor:
    """What watches the daemon, and is told by the other rooms what they do."""
    local = LocalFiles(engine, workers, docker_root=config.docker_root, content_store=config.content_store)

    def cache() -> Readings:
        used = store.usage()
        return Readings(used.bytes, used.limit, used.count, used.evicted_blobs, used.evicted_bytes)

    return Monitor(
        engine,
        engine,
        clock,
        version=__version__,
        where=str(config.docker),
        cache=cache,
        pushed=pushed,
        size_of=store.size_of,
        sources=lambda info: source_states(info, local, reader=config.reader),
    )
