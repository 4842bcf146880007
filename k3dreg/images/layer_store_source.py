"""Read the classic image store in place: make manifests from its metadata, and layers from their files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from cachetools import TTLCache
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.image import EngineImage
from k3dreg.docker.interfaces import IEngine
from k3dreg.engine_files.engine_files import IEngineFiles
from k3dreg.engine_files.layout import LayerPaths, chain_ids
from k3dreg.formats.tar_split import tar_size, unzip_lines
from k3dreg.images.content_map import ContentMap
from k3dreg.images.layer_assembly import LARGEST_TAR_SPLIT
from k3dreg.images.layer_build import Layer, LayerBuild
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    BlobUnknown,
    ContentError,
    DigestMismatch,
    EngineUnavailable,
    FileAbsent,
    FilesUnreachable,
    K3dregError,
    ManifestUnknown,
    StoreError,
)
from k3dreg.oci.manifest import LARGEST_CONFIG, make_image_manifest
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.trace import Trace
from k3dreg.store.arrivals import Arrival, Arrivals
from k3dreg.store.interfaces import IBlobStore
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.gather import all_of
from k3dreg.streaming.memory_blob import MemoryBlob
from k3dreg.streaming.single_flight import SingleFlight
from k3dreg.streaming.workers import Workers

log = make_logger()

T = TypeVar("T")

# Tar-splits that are measured at once.  The limit is for memory: each may have `LARGEST_TAR_SPLIT` bytes.
_MEASURED_AT_ONCE = 2
# Layers that are assembled at once: a node asks for three at a time.  Two already use two processors fully.
_LAYERS_AT_ONCE = 3
# Seconds for which a layer that could not be assembled is not tried again, so that the next source serves it.
_BROKEN_FOR = 600.0
_BROKEN_REMEMBERED = 10_000


class LayerStoreSource:
    """Serves images of the classic store with the storage driver overlay2.  Implements `IImageSource`.

    The manifest is byte for byte the one that `ExportSource` makes.  Simultaneous requests share one assembly of a
    layer.  The layer is sent while it is assembled, verified against its diffID, and kept in the store.
    """

    name = "layers"
    at_hand = False

    def __init__(
        self,
        engine: IEngine,
        files: Sequence[IEngineFiles],
        store: IBlobStore,
        arrivals: Arrivals,
        content_map: ContentMap,
        workers: Workers,
        clock: IReactorTime,
    ) -> None:
        """`files`: ways to the engine's files, the fastest first.  Content is read by the first that finds it."""
        self._engine = engine
        self._files = files
        self._store = store
        self._arrivals = arrivals
        self._map = content_map
        self._workers = workers
        self._clock = clock
        self._slots = DeferredSemaphore(_LAYERS_AT_ONCE)
        self._measuring = DeferredSemaphore(_MEASURED_AT_ONCE)
        self._looking: SingleFlight[Digest, Descriptor] = SingleFlight()
        self._broken: TTLCache[Digest, bool] = TTLCache(_BROKEN_REMEMBERED, _BROKEN_FOR, clock.seconds)

    async def root(self, image: EngineImage, trace: Trace) -> Descriptor:
        """Return the descriptor of the manifest that k3dreg makes for the image, without reading any layer.

        An image is examined when it is not recorded, and again after a part of it could not be read.  Raises
        `ManifestUnknown` when this source cannot serve the image.
        """
        return self._map.root_of(image, self.name) or await self._examine(image)

    async def open(self, image: EngineImage, digest: Digest, trace: Trace) -> IBlob:
        """Return the manifest, the config, or a layer: from the store, or while the layer is assembled.

        Raises `BlobUnknown` when it is no part of the image, or the layer cannot be assembled.
        """
        try:
            root = await self.root(image, trace)
            if digest in (root.digest, image.id):
                trace.source = self.name
                return await self._document(image, digest)
        except ManifestUnknown as error:
            raise BlobUnknown(str(error)) from error
        if digest not in image.diff_ids:
            raise BlobUnknown(f"{digest} is not a part of the image {image.id}")
        if digest in self._broken:
            raise BlobUnknown(f"the layer {digest} could not be assembled from its files")
        kept = self._store.get(digest)
        if kept is not None:
            trace.source = trace.source or "cache"
            return kept
        trace.source = self.name
        try:
            return await self._arrivals.open(digest, partial(self._assemble, image, digest))
        except ManifestUnknown as error:
            await self._map.expire(self.name, image)
            raise BlobUnknown(f"the layer {digest} cannot be assembled from its files: {error}") from error

    async def shutdown(self) -> None:
        """Cancel the examinations of images that are under way."""
        await self._looking.shutdown()

    # -- looking at an image ------------------------------------------------------------------------

    async def _read(
        self, image: EngineImage, read: Callable[[EngineImage, IEngineFiles, LayerPaths], Awaitable[T]]
    ) -> T:
        """Return what `read` returns for the first way that finds the files.  Raises `ManifestUnknown` if none does."""
        paths = LayerPaths.of(await self._engine.info())
        if paths is None:
            raise ManifestUnknown("the engine has no classic image store with the driver overlay2")
        complaint = ""
        for files in self._files:
            try:
                return await read(image, files, paths)
            except (FileAbsent, FilesUnreachable) as error:
                complaint = str(error)
            except ContentError as error:
                complaint = str(error)
                log.warn("{image} cannot be read in Docker's layer store: {error}", image=image.id, error=error)
        raise ManifestUnknown(f"the layers of {image.id} cannot be read: {complaint}")

    def _examine(self, image: EngineImage) -> Deferred[Descriptor]:
        """Make the image's manifest, record its parts, and return its descriptor.  Raises `ManifestUnknown`."""
        return self._looking.join(image.id, lambda: self._read(image, self._take))

    async def _take(self, image: EngineImage, files: IEngineFiles, paths: LayerPaths) -> Descriptor:
        config = await self._config(image, files, paths)
        layers = zip(chain_ids(image.diff_ids), image.diff_ids, strict=True)
        sizes = await all_of(self._size(files, paths, chain, diff_id) for chain, diff_id in layers)
        root, data = _manifest(image, len(config), sizes)
        parts = {root.digest: root.size, image.id: len(config), **dict(zip(image.diff_ids, sizes, strict=True))}
        await self._map.record(self.name, image, root, parts)
        # Put into the store as well, for a node that asks for them while Docker is away.
        with contextlib.suppress(StoreError):  # the store is a cache here
            await self._store.put(config)
            await self._store.put(data)
        return root

    async def _document(self, image: EngineImage, digest: Digest) -> IBlob:
        """Return the image's config or its manifest.  Raises `ManifestUnknown`."""
        kept = self._store.get(digest)
        if kept is not None:
            return kept
        data = await self._read(image, self._config)
        if digest != image.id:
            sizes = [self._map.size_in(image, diff_id) or 0 for diff_id in image.diff_ids]
            _, data = _manifest(image, len(data), sizes)
        with contextlib.suppress(StoreError):
            await self._store.put(data)
        return MemoryBlob(digest, data)

    async def _config(self, image: EngineImage, files: IEngineFiles, paths: LayerPaths) -> bytes:
        """Return the image's config, verified."""
        config = await files.read(paths.config(image.id), LARGEST_CONFIG)
        await self._workers.run(_check_config, image, config)
        return config

    async def _size(self, files: IEngineFiles, paths: LayerPaths, chain: Digest, diff_id: Digest) -> int:
        """Return the size of a layer's tar in bytes, without reading any of its files."""
        size = self._map.size_of(diff_id)
        if size is None:
            await self._measuring.acquire()
            try:
                tar_split = await files.read(paths.about(chain, "tar-split.json.gz"), LARGEST_TAR_SPLIT)
                size = await self._workers.run(_measure, tar_split)
            finally:
                self._measuring.release()
        return size

    # -- assembling layers --------------------------------------------------------------------------

    async def _assemble(self, image: EngineImage, digest: Digest, arrival: Arrival) -> None:
        """Assemble the layer, which clients may read as soon as its directory was found."""
        chain = chain_ids(image.diff_ids)[image.diff_ids.index(digest)]
        layer = Layer(chain, digest, self._map.size_in(image, digest) or 0)

        async def find(_: EngineImage, files: IEngineFiles, paths: LayerPaths) -> tuple[LayerBuild, str]:
            build = LayerBuild(files, self._workers, self._slots, paths, layer)
            return build, await build.directory()

        build, directory = await self._read(image, find)
        await arrival.begin(layer.size)
        started = self._clock.seconds()
        try:
            await build.assemble(directory, arrival)
        except K3dregError as error:
            log.warn("the layer {layer} could not be assembled: {error}", layer=layer.diff_id, error=error)
            if not isinstance(error, StoreError | EngineUnavailable):
                self._broken[layer.diff_id] = True
            raise
        log.info(
            "assembled the layer {layer}: {size:.0f} MB in {seconds:.1f} s",
            layer=layer.diff_id.short,
            size=layer.size / 1e6,
            seconds=self._clock.seconds() - started,
        )


def _measure(tar_split: bytes) -> int:
    return tar_size(unzip_lines(tar_split))


def _manifest(image: EngineImage, config_size: int, sizes: Sequence[int]) -> tuple[Descriptor, bytes]:
    layers = [Descriptor("", diff_id, size) for diff_id, size in zip(image.diff_ids, sizes, strict=True)]
    return make_image_manifest(Descriptor("", image.id, config_size), layers)


def _check_config(image: EngineImage, config: bytes) -> None:
    """Raise `ContentError` unless a config is that of the image, with its layers (image-spec 1.1, config.md).

    Call it in a worker thread, because a large config takes long.
    """
    if Digest.of(config, image.id.algorithm) != image.id:
        raise DigestMismatch(f"the config {image.id} does not hash to its digest on the engine's disk")
    try:
        diff_ids = json.loads(config)["rootfs"]["diff_ids"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContentError("an image's config has no rootfs.diff_ids") from error
    if diff_ids != list(map(str, image.diff_ids)):
        raise ContentError("the layers that Docker tells of an image are not those of its config")
