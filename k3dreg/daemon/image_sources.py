"""Which sources a daemon has, and how they reach the engine's files."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from k3dreg.config.settings import Config
from k3dreg.daemon.closing import Closing
from k3dreg.docker.client import EngineClient
from k3dreg.docker.interfaces import IImageNames
from k3dreg.engine_files.engine_files import IEngineFiles
from k3dreg.engine_files.helper_container import HelperContainer
from k3dreg.engine_files.helper_objects import clean_up
from k3dreg.engine_files.local_files import LocalFiles, files_here
from k3dreg.engine_files.own_container import find_own_container
from k3dreg.engine_files.passed_directories import PassedDirectories
from k3dreg.engine_files.reader_files import ReaderFiles
from k3dreg.images.content_store_source import ContentStoreSource
from k3dreg.images.export_source import ExportSource
from k3dreg.images.layer_store_source import LayerStoreSource
from k3dreg.images.source import ICatalogue, IImageSource, ILooseContent
from k3dreg.registry.prefetch import Prefetch
from k3dreg.reporting.observer import NULL_OBSERVER, IObserver
from k3dreg.status.monitoring import IMonitoring
from k3dreg.store.durable_files import storage_errors, write_whole
from k3dreg.store.interfaces import IBlobStore
from k3dreg.streaming.workers import Workers


@frozen
class EngineFileAccess:
    """The ways to the engine's files, the fastest first.

    `local` are those of this machine, `passed` those whose directories a helper container passes, where one can.
    """

    ways: tuple[IEngineFiles, ...]
    local: LocalFiles
    passed: LocalFiles | None


@frozen
class ImageSources:
    """The sources in the order in which they are tried; `loose` has single blobs of images that are not whole."""

    sources: tuple[IImageSource, ...]
    loose: ILooseContent


async def make_files(
    config: Config, engine: EngineClient, workers: Workers, reactor: Any, closing: Closing
) -> EngineFileAccess:
    """Whatever `--reader` allows, until `closing`.

    `reactor` provides `IReactorTime` and `IReactorUNIX`.  Raises `StoreError`.
    """
    local = files_here(engine, workers, config.docker_root, config.content_store)
    if config.reader == "off":
        return EngineFileAccess((local,), local, None)
    owner = await workers.run(identity, config.state_dir)
    scratch = str(config.state_dir / "staging")
    passed = None
    own = await workers.run(find_own_container)
    if config.reader == "on" and own is not None:
        helper = HelperContainer(engine, workers, reactor, owner, own.id)
        directories = PassedDirectories(engine, helper.pass_directories, reactor, own.useful_directories, local)
        passed = LocalFiles(workers, directories)
        closing.add(directories.close)
        closing.add(_begin(directories.begin()))
    closing.add(_begin(clean_up(engine, owner, reactor)))
    reader = ReaderFiles(engine, workers, reactor, owner=owner, scratch=scratch)
    closing.add(reader.close)
    in_place = [files for files in (local, passed) if files is not None]
    return EngineFileAccess((*in_place, reader), local, passed)


def _begin(work: Coroutine[Deferred[Any], Any, None]) -> Callable[[], None]:
    """Start work for which the start does not wait; return what cancels it."""
    working = Deferred.fromCoroutine(work)
    working.addErrback(lambda failure: failure.trap(CancelledError) and None)
    return working.cancel


def make_sources(
    files: EngineFileAccess,
    engine: EngineClient,
    store: IBlobStore,
    catalogue: ICatalogue,
    workers: Workers,
    clock: IReactorTime,
    closing: Closing,
    observer: IObserver = NULL_OBSERVER,
) -> ImageSources:
    """The engine's own files where they can be read, its exports where not; until `closing`."""
    content = ContentStoreSource(engine, files.ways, catalogue)
    closing.add(content.shutdown)
    layers = LayerStoreSource(engine, files.ways, store, catalogue, workers, clock)
    closing.add(layers.shutdown)
    archive = ExportSource(engine, store, catalogue, workers, clock, observer)
    closing.add(archive.shutdown)
    return ImageSources((content, layers, archive), content)


def make_warming(
    engine: EngineClient,
    names: IImageNames,
    sources: Sequence[IImageSource],
    store: IBlobStore,
    monitoring: IMonitoring,
    clock: IReactorTime,
) -> Prefetch:
    """Return what prepares images before clients ask for them, once `change` tells it which (`--warm`)."""

    def is_busy() -> bool:
        return bool(monitoring.live().running)

    return Prefetch((), engine, engine, names, sources, store, is_busy, clock)


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
