"""Makes the sources of image content, and the ways by which they reach the engine's files."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
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
from k3dreg.images.content_map import ContentMap
from k3dreg.images.content_store_source import ContentStoreSource
from k3dreg.images.export_source import ExportSource
from k3dreg.images.layer_store_source import LayerStoreSource
from k3dreg.images.source import IImageSource, ILooseContent
from k3dreg.registry.prefetch import Prefetch
from k3dreg.reporting.observer import NULL_OBSERVER, IObserver
from k3dreg.status.monitoring import IMonitoring
from k3dreg.store.arrivals import Arrivals
from k3dreg.store.identity import identity
from k3dreg.store.interfaces import IBlobStore
from k3dreg.streaming.workers import Workers


@frozen
class EngineFileAccess:
    """The ways to the engine's files, the fastest first.

    `local` are the files on this machine.  `passed` are the files whose directories a helper container passes, None if
    there is no such container.
    """

    ways: tuple[IEngineFiles, ...]
    local: LocalFiles
    passed: LocalFiles | None


@frozen
class ImageSources:
    """The sources in the order in which they are tried, and `loose`, which has single blobs of incomplete images."""

    sources: tuple[IImageSource, ...]
    loose: ILooseContent


async def make_files(
    config: Config, engine: EngineClient, workers: Workers, arrivals: Arrivals, reactor: Any, closing: Closing
) -> EngineFileAccess:
    """Return the ways to the engine's files that `--reader` allows, and remove what an earlier run left in the engine.

    `closing` closes them.  `reactor` provides `IReactorTime` and `IReactorUNIX`.  Raises `StoreError`.
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
    reader = ReaderFiles(engine, workers, reactor, arrivals, owner=owner, scratch=scratch)
    closing.add(reader.close)
    in_place = [files for files in (local, passed) if files is not None]
    return EngineFileAccess((*in_place, reader), local, passed)


def _begin(work: Coroutine[Deferred[Any], Any, None]) -> Callable[[], None]:
    """Start work in the background; return the function that cancels it."""
    working = Deferred.fromCoroutine(work)
    working.addErrback(lambda failure: failure.trap(CancelledError) and None)
    return working.cancel


def make_sources(
    files: EngineFileAccess,
    engine: EngineClient,
    store: IBlobStore,
    arrivals: Arrivals,
    content_map: ContentMap,
    workers: Workers,
    clock: IReactorTime,
    closing: Closing,
    observer: IObserver = NULL_OBSERVER,
) -> ImageSources:
    """Return the sources: those that read the engine's files, and last its exports.  `closing` closes them."""
    content = ContentStoreSource(engine, files.ways, content_map)
    closing.add(content.shutdown)
    layers = LayerStoreSource(engine, files.ways, store, arrivals, content_map, workers, clock)
    closing.add(layers.shutdown)
    archive = ExportSource(engine, store, arrivals, content_map, workers, clock, observer)
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
    """Return the `Prefetch` of `--warm`.  It does nothing until `change` gives it patterns."""

    def is_busy() -> bool:
        return bool(monitoring.live().running)

    return Prefetch((), engine, names, sources, store, is_busy, clock)
