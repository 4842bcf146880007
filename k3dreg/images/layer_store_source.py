"""Read the classic image store in place: make manifests from its metadata, and layers from their files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from functools import partial

from attrs import field, frozen
from cachetools import LRUCache, TTLCache
from twisted.internet.defer import DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.image import EngineImage
from k3dreg.docker.interfaces import IEngine
from k3dreg.engine_files.engine_files import IEngineFiles
from k3dreg.engine_files.layout import LayerPaths, chain_ids
from k3dreg.formats.tar_split import tar_size, unzip_lines
from k3dreg.images.layer_assembly import LARGEST_TAR_SPLIT
from k3dreg.images.layer_build import Layer, LayerBuild
from k3dreg.images.source import ICatalogue
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    BlobUnknown,
    ContentError,
    DigestMismatch,
    EngineUnavailable,
    FileAbsent,
    FilesUnreachable,
    InvalidDigest,
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

# Bytes of a config that is kept in memory.
_LARGEST_REMEMBERED = 1024 * 1024
# Tar-splits that are measured at once.  The limit is for memory: each may have `LARGEST_TAR_SPLIT` bytes.
_MEASURED_AT_ONCE = 2
# Layers that are assembled at once: a node asks for three at a time.  Two already use two processors fully.
_LAYERS_AT_ONCE = 3
_IMAGES_REMEMBERED = 256
_SIZES_REMEMBERED = 10_000
# Seconds for which a layer that could not be assembled is not tried again, so that the next source serves it.
_BROKEN_FOR = 600.0


@frozen
class _Held:
    """What is known of an image: the root of the made manifest, its documents, and its layers by their diffIDs."""

    files: IEngineFiles
    root: Descriptor
    documents: dict[Digest, MemoryBlob] = field(repr=False)
    layers: dict[Digest, Layer] = field(factory=dict)


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
        catalogue: ICatalogue,
        workers: Workers,
        clock: IReactorTime,
    ) -> None:
        """`files`: ways to the engine's files, the fastest first.  An image is read by the first that finds it."""
        self._engine = engine
        self._files = files
        self._store = store
        self._arrivals = arrivals
        self._catalogue = catalogue
        self._workers = workers
        self._clock = clock
        self._slots = DeferredSemaphore(_LAYERS_AT_ONCE)
        self._measuring = DeferredSemaphore(_MEASURED_AT_ONCE)
        self._held: LRUCache[Digest, _Held] = LRUCache(_IMAGES_REMEMBERED)
        self._sizes: LRUCache[Digest, int] = LRUCache(_SIZES_REMEMBERED)  # by chain ID
        self._looking: SingleFlight[Digest, _Held] = SingleFlight()
        self._broken: TTLCache[Digest, bool] = TTLCache(_SIZES_REMEMBERED, _BROKEN_FOR, clock.seconds)

    async def root(self, image: EngineImage, trace: Trace) -> Descriptor:
        """Return the descriptor of the manifest that k3dreg makes for the image, without reading any layer.

        Raises `ManifestUnknown` when this source cannot serve the image.
        """
        held = await self._look(image)
        if not self._catalogue.is_recorded(image):
            await self._catalogue.record(image, held.root, [*held.documents, *held.layers])
        return held.root

    async def open(self, image: EngineImage, digest: Digest, trace: Trace) -> IBlob:
        """Return the manifest, the config, or a layer: from the store, or while the layer is assembled.

        Raises `BlobUnknown` when it is no part of the image, or the layer cannot be assembled.
        """
        held = await self._look_for_part(image)
        document: IBlob | None = held.documents.get(digest)
        if document is None and digest == image.id:
            document = await self._large_config(held.files, image.id)
        if document is not None:
            trace.source = self.name
            return document
        layer = held.layers.get(digest)
        if layer is None:
            raise BlobUnknown(f"{digest} is not a part of the image {image.id}")
        if digest in self._broken:
            raise BlobUnknown(f"the layer {digest} could not be assembled from its files")
        kept = self._store.get(digest)
        if kept is not None:
            trace.source = trace.source or "cache"
            return kept
        trace.source = self.name
        try:
            return await self._arrivals.open(digest, partial(self._assemble, held.files, layer))
        except (FileAbsent, FilesUnreachable, ContentError) as error:
            self._held.pop(image.id, None)
            raise BlobUnknown(f"the layer {digest} cannot be assembled from its files: {error}") from error

    async def shutdown(self) -> None:
        """Cancel the examinations of images that are under way."""
        await self._looking.shutdown()

    # -- looking at an image ------------------------------------------------------------------------

    async def _look_for_part(self, image: EngineImage) -> _Held:
        try:
            return await self._look(image)
        except ManifestUnknown as error:
            raise BlobUnknown(str(error)) from error

    async def _look(self, image: EngineImage) -> _Held:
        """Examine the image, once: its ID is the digest of its config, so its contents never change."""
        held = self._held.get(image.id)
        if held is None:
            held = await self._looking.join(image.id, lambda: self._examine(image))
            self._held[image.id] = held
        return held

    async def _paths(self) -> LayerPaths:
        paths = LayerPaths.of(await self._engine.info())
        if paths is None:
            raise ManifestUnknown("the engine has no classic image store with the driver overlay2")
        return paths

    async def _examine(self, image: EngineImage) -> _Held:
        """Read the image by the first way that finds it.  Raises `ManifestUnknown` when this source cannot serve it."""
        paths = await self._paths()
        complaint = ""
        for files in self._files:
            try:
                return await self._take(files, paths, image)
            except (FileAbsent, FilesUnreachable) as error:
                complaint = str(error)
            except ContentError as error:
                complaint = str(error)
                log.warn("{image} cannot be read in Docker's layer store: {error}", image=image.id, error=error)
        raise ManifestUnknown(f"the layers of {image.id} cannot be read: {complaint}")

    async def _take(self, files: IEngineFiles, paths: LayerPaths, image: EngineImage) -> _Held:
        config = await files.read(paths.config(image.id), LARGEST_CONFIG)
        diff_ids = await self._workers.run(_diff_ids, image.id, config)
        chains = chain_ids(diff_ids)
        sizes = await all_of(self._size(files, paths, chain) for chain in chains)
        root, data = make_image_manifest(
            Descriptor("", image.id, len(config)),
            [Descriptor("", diff_id, size) for diff_id, size in zip(diff_ids, sizes, strict=True)],
        )
        # Put into the store as well, for a node that asks for them after a restart of k3dreg.
        is_kept = False
        with contextlib.suppress(StoreError):  # the store is a cache here: they are then served from memory
            await self._store.put(config)
            await self._store.put(data)
            is_kept = True
        documents = [MemoryBlob(root.digest, data, root.media_type)]
        if len(config) <= _LARGEST_REMEMBERED or not is_kept:
            documents.append(MemoryBlob(image.id, config))
        layers = map(Layer, chains, diff_ids, sizes)
        return _Held(files, root, {blob.digest: blob for blob in documents}, {layer.diff_id: layer for layer in layers})

    async def _large_config(self, files: IEngineFiles, identity: Digest) -> IBlob:
        """Return a config that is too large for memory from the store; put it there again if it was evicted."""
        kept = self._store.get(identity)
        if kept is None:
            config = await files.read((await self._paths()).config(identity), LARGEST_CONFIG)
            await self._workers.run(_diff_ids, identity, config)
            await self._store.put(config)
            kept = self._store.get(identity) or MemoryBlob(identity, config)
        return kept

    async def _size(self, files: IEngineFiles, paths: LayerPaths, chain: Digest) -> int:
        """Return the size of a layer's tar in bytes, without reading any of its files."""
        size = self._sizes.get(chain)
        if size is None:
            await self._measuring.acquire()
            try:
                tar_split = await files.read(paths.about(chain, "tar-split.json.gz"), LARGEST_TAR_SPLIT)
                size = await self._workers.run(_measure, tar_split)
            finally:
                self._measuring.release()
            self._sizes[chain] = size
        return size

    # -- assembling layers --------------------------------------------------------------------------

    async def _assemble(self, files: IEngineFiles, layer: Layer, arrival: Arrival) -> None:
        """Assemble the layer, which clients may read as soon as its directory was found."""
        build = LayerBuild(files, self._workers, self._slots, await self._paths(), layer)
        directory = await build.directory()
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


def _diff_ids(identity: Digest, config: bytes) -> list[Digest]:
    """Return `rootfs.diff_ids` of a config (image-spec 1.1, config.md).  Raises `ContentError`.

    Call it in a worker thread, because a large config takes long.
    """
    if Digest.of(config, identity.algorithm) != identity:
        raise DigestMismatch(f"the config {identity} does not hash to its digest on the engine's disk")
    try:
        return [Digest.parse(text) for text in json.loads(config)["rootfs"]["diff_ids"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidDigest) as error:
        raise ContentError("an image's config has no rootfs.diff_ids") from error
