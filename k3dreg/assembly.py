"""Which sources a daemon has, and how they reach the engine's files."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from k3dreg.config import Config
from k3dreg.engine.client import Engine
from k3dreg.files.local import LocalFiles
from k3dreg.files.reader import ReaderFiles
from k3dreg.interfaces import (
    IBlobStore,
    ICatalogue,
    IEngineFiles,
    IImageSource,
    ILooseContent,
    IMonitoring,
    IObserver,
)
from k3dreg.learning import EngineImageNames
from k3dreg.observing import NOBODY
from k3dreg.sources.archive import ArchiveSource
from k3dreg.sources.content_store import ContentStoreSource
from k3dreg.sources.layer_store import LayerStoreSource
from k3dreg.store.disk import storage_errors, write_whole
from k3dreg.streaming.workers import Workers
from k3dreg.warming import Warming


@frozen
class Sources:
    """The sources in the order in which they are tried; `loose` is the one that has single blobs of
    images that are not whole; `closing` is what to call, last first, to end them.
    """

    sources: tuple[IImageSource, ...]
    loose: ILooseContent
    closing: tuple[Callable[[], Awaitable[object] | None], ...]


async def make_sources(
    config: Config,
    engine: Engine,
    store: IBlobStore,
    catalogue: ICatalogue,
    workers: Workers,
    clock: IReactorTime,
    observer: IObserver = NOBODY,
) -> Sources:
    """The engine's own files where they can be read, its exports where not.  Raises `StoreError`."""
    closing: list[Callable[[], Awaitable[object] | None]] = []
    files: list[IEngineFiles] = [
        LocalFiles(engine, workers, docker_root=config.docker_root, content_store=config.content_store)
    ]
    if config.reader:
        owner = await workers.run(identity, config.state_dir)
        reader = ReaderFiles(engine, workers, clock, owner=owner, scratch=str(config.state_dir / "staging"))
        files.append(reader)
        closing.append(reader.close)
    content = ContentStoreSource(engine, files, store, catalogue, workers, clock)
    layers = LayerStoreSource(engine, files, store, catalogue, workers, clock)
    archive = ArchiveSource(engine, store, catalogue, workers, clock, observer)
    closing += [content.shutdown, layers.shutdown, archive.shutdown]
    return Sources((content, layers, archive), content, tuple(closing))


def make_warming(
    config: Config,
    engine: Engine,
    sources: Sequence[IImageSource],
    store: IBlobStore,
    monitoring: IMonitoring,
    clock: IReactorTime,
) -> Warming:
    """Who makes images ready before they are asked for (`--warm`)."""

    def is_busy() -> bool:
        return bool(monitoring.live().running)

    return Warming(config.warm, engine, engine, EngineImageNames(engine), sources, store, is_busy, clock)


def identity(state_dir: Path) -> str:
    """What tells this state directory's containers from those of another k3dreg on the same engine.  Blocks.

    Made once, and the same after every restart.  Raises `StoreError`.
    """
    path = state_dir / "identity"
    with storage_errors("reading its identity"):
        try:
            known = path.read_text("ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            known = ""
        if not (known.isalnum() and len(known) == _IDENTITY_LENGTH):
            known = secrets.token_hex(_IDENTITY_LENGTH // 2)
            write_whole(path, state_dir / "staging" / "identity", known.encode("ascii"))
    return known


# Hexadecimal digits: enough that no two on one engine are the same.
_IDENTITY_LENGTH = 16
