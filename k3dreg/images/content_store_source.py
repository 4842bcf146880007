"""The containerd image store read in place: manifests and blobs are files named by their digests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from attrs import field, frozen
from cachetools import LRUCache
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.image import EngineImage
from k3dreg.docker.interfaces import IEngine
from k3dreg.engine_files.engine_files import IEngineFiles
from k3dreg.engine_files.layout import content_directories, content_path
from k3dreg.images.source import ICatalogue
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    BlobUnknown,
    ContentError,
    DigestMismatch,
    FileAbsent,
    FilesUnreachable,
    ImageIncomplete,
    InvalidManifest,
    ManifestUnknown,
)
from k3dreg.oci.manifest import LARGEST_MANIFEST, Manifest
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.trace import Trace
from k3dreg.store.interfaces import IBlobStore
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.gather import all_of
from k3dreg.streaming.memory_blob import MemoryBlob
from k3dreg.streaming.single_flight import SingleFlight
from k3dreg.streaming.workers import Workers

log = make_logger()

# Images whose parts are remembered; each has some tens of them, and its manifests and configs, some 20 KiB.
_IMAGES_REMEMBERED = 256
# Bytes of a config.  Docker's own are below 100 KiB; larger ones are sent as any blob is.
_LARGEST_CONFIG = 1024 * 1024
# Manifests in an image.  The largest index known has some sixty, attestations included.
_MANIFESTS = 1000
# What BuildKit writes beside an image's manifest in an index, about the image and not runnable.
_ATTESTATION = "vnd.docker.reference.type"


@frozen
class _Held:
    """What the engine holds of an image.  `parts` are all that its manifests name, whether they are here or not."""

    fingerprint: str
    files: IEngineFiles
    directory: str
    root: Descriptor
    parts: dict[Digest, Descriptor]
    documents: dict[Digest, MemoryBlob] = field(repr=False)
    whole: bool


class ContentStoreSource:
    """See `IImageSource`.  Nothing is exported, and nothing but small documents is copied.

    Manifests and configs are verified.  Of other blobs only the size is checked: containerd verified them when they
    arrived and the node does so again, and to hash a GB takes a processor 0.6 s, where sending it from a file takes
    0.2 to 0.3 s.
    """

    name = "content"
    at_hand = True

    def __init__(
        self,
        engine: IEngine,
        files: Sequence[IEngineFiles],
        store: IBlobStore,
        catalogue: ICatalogue,
        workers: Workers,
        clock: IReactorTime,
    ) -> None:
        """`files`: ways to the engine's files, the fastest first; an image is read in the first that has it."""
        self._engine = engine
        self._files = files
        self._catalogue = catalogue
        self._clock = clock
        self._held: LRUCache[Digest, _Held] = LRUCache(_IMAGES_REMEMBERED)
        self._looking: SingleFlight[str, _Held] = SingleFlight()

    async def root(self, image: EngineImage, trace: Trace) -> Descriptor:
        """The engine's own digest, media type and size.

        Raises `ImageIncomplete` unless some platform's config and layers are all there.
        """
        held = await self._look(image)
        if not held.whole:
            raise ImageIncomplete(f"Docker holds no platform of {image.id} whole")
        if not self._catalogue.is_recorded(image):
            # After a restart a node may ask for blobs of a manifest that it has already.
            await self._catalogue.record(image, held.root, held.parts)
        return held.root

    async def open(self, image: EngineImage, digest: Digest, trace: Trace) -> IBlob:
        """A part of the image, if its file is there and as long as the manifests say."""
        try:
            held = await self._look(image)
        except ManifestUnknown as error:
            raise BlobUnknown(str(error)) from error
        described = held.parts.get(digest)
        if described is None:
            raise BlobUnknown(f"{digest} is not a part of the image {image.id}")
        blob: IBlob | None = held.documents.get(digest)
        if blob is None:
            try:
                blob = await held.files.blob(content_path(held.directory, digest), digest, described.size)
            except (FileAbsent, FilesUnreachable, ContentError) as error:
                # The engine may have removed it, or its files are not to be reached this way any more: look again.
                self._held.pop(image.id, None)
                if isinstance(error, ContentError):
                    log.warn("{error}", error=error)
                raise BlobUnknown(f"Docker does not hold {digest}: {error}") from error
        trace.source = self.name
        return blob

    async def loose(self, descriptor: Descriptor) -> IBlob | None:
        """A blob of an image that may not be whole yet: containerd gives it its name when it has it all."""
        for files, directory in product(self._files, content_directories(await self._engine.info())):
            try:
                return await files.blob(content_path(directory, descriptor.digest), descriptor.digest, descriptor.size)
            except (FileAbsent, FilesUnreachable, ContentError):
                continue
        return None

    async def shutdown(self) -> None:
        """Stop looking."""
        await self._looking.shutdown()

    # -- looking at an image ------------------------------------------------------------------------

    async def _look(self, image: EngineImage) -> _Held:
        held = self._held.get(image.id)
        if held is None or held.fingerprint != image.fingerprint:
            held = await self._looking.join(image.fingerprint, lambda: self._examine(image))
            self._held[image.id] = held
        return held

    async def _examine(self, image: EngineImage) -> _Held:
        """Raises `ManifestUnknown` when this source cannot serve the image."""
        directories = content_directories(await self._engine.info())
        if not directories:
            raise ManifestUnknown("the engine has no containerd image store")
        complaint = ""
        for files, directory in product(self._files, directories):
            try:
                return await _Look(files, image, directory).take()
            except (FileAbsent, FilesUnreachable) as error:
                complaint = str(error)
            except (ContentError, InvalidManifest) as error:
                complaint = str(error)
                log.warn("{image} cannot be read in Docker's content store: {error}", image=image.id, error=error)
        raise ManifestUnknown(f"the manifest of {image.id} cannot be read in Docker's content store: {complaint}")


class _Look:
    """One look at what is there of an image."""

    def __init__(self, files: IEngineFiles, image: EngineImage, directory: str) -> None:
        self._files = files
        self._image = image
        self._directory = directory
        self._parts: dict[Digest, Descriptor] = {}
        self._documents: dict[Digest, MemoryBlob] = {}
        self._whole = False
        # The engine says that it holds nothing of these.  Of others it may lack only what need not be here.
        self._lacking = {child.descriptor.digest for child in image.children if not child.available and not child.held}

    async def take(self) -> _Held:
        """Raises `FileAbsent` if not even the root is there, `ContentError` or `InvalidManifest` if it is damaged."""
        image = self._image
        told = image.descriptor.media_type if image.descriptor is not None else ""
        manifest = await self._manifest(image.id, told)
        await self._check(manifest)
        size = self._documents[image.id].size
        root = Descriptor(manifest.media_type, image.id, size)
        self._parts[image.id] = root
        return _Held(image.fingerprint, self._files, self._directory, root, self._parts, self._documents, self._whole)

    async def _manifest(self, digest: Digest, media_type: str) -> Manifest:
        data = await self._read(digest, LARGEST_MANIFEST)
        manifest = Manifest.parse(data, media_type)
        self._documents[digest] = MemoryBlob(digest, data, manifest.media_type)
        for part in manifest.children():
            self._parts.setdefault(part.digest, part)
        if len(self._documents) > _MANIFESTS:
            raise ContentError(f"an image of more than {_MANIFESTS} manifests")
        if manifest.is_index:
            children = [child for child in manifest.manifests if child.digest not in self._lacking]
            await all_of(self._child(child) for child in children)
        return manifest

    async def _child(self, described: Descriptor) -> None:
        """A manifest named by an index, if it is here: the engine holds it of some platforms only."""
        if described.media_type not in media_types.MANIFESTS | media_types.INDEXES:
            return
        try:
            manifest = await self._manifest(described.digest, described.media_type)
        except FileAbsent:
            return
        if _ATTESTATION not in described.annotations:
            await self._check(manifest)

    async def _check(self, manifest: Manifest) -> None:
        """Note whether an image manifest's config and layers are all here."""
        if manifest.is_index or manifest.config is None:
            return
        layers = [layer for layer in manifest.layers if media_types.is_distributable(layer.media_type)]
        try:
            await all_of([self._read_config(manifest.config), *map(self._check_size, layers)])
        except FileAbsent:
            return
        self._whole = True

    async def _check_size(self, described: Descriptor) -> None:
        found = await self._files.stat(content_path(self._directory, described.digest))
        if not found.is_file or found.size != described.size:
            raise FileAbsent(f"{described.digest} is not as long as it should be")

    async def _read_config(self, described: Descriptor) -> None:
        if described.size > _LARGEST_CONFIG:
            await self._check_size(described)
        else:
            data = await self._read(described.digest, _LARGEST_CONFIG)
            self._documents[described.digest] = MemoryBlob(described.digest, data, described.media_type)

    async def _read(self, digest: Digest, limit: int) -> bytes:
        data = await self._files.read(content_path(self._directory, digest), limit)
        if Digest.of(data, digest.algorithm) != digest:
            raise DigestMismatch(f"{digest} does not hash to its digest on the engine's disk")
        return data
