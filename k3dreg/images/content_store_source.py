"""Read the containerd image store in place: its manifests and blobs are files named by their digests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from attrs import field, frozen
from cachetools import LRUCache

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
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.gather import all_of
from k3dreg.streaming.memory_blob import MemoryBlob
from k3dreg.streaming.single_flight import SingleFlight

log = make_logger()

# Images whose descriptors, manifests and configs are kept in memory: some 20 KiB for each.
_IMAGES_REMEMBERED = 256
# Bytes of a config that is kept in memory.  Docker's are below 100 KiB; larger ones are served as files.
_LARGEST_CONFIG = 1024 * 1024
# Manifests in an image at most.  The largest known index has some sixty, including attestations.
_MANIFESTS = 1000
# The annotation by which BuildKit marks an attestation in an index: a manifest about an image, which does not run.
_ATTESTATION = "vnd.docker.reference.type"


@frozen
class _Held:
    """What the engine holds of an image.

    `parts`: the descriptors in its manifests, whether the engine holds their blobs or not.  `documents`: its manifests
    and small configs.  `whole`: the engine holds all blobs of at least one platform.
    """

    fingerprint: str
    files: IEngineFiles
    directory: str
    root: Descriptor
    parts: dict[Digest, Descriptor]
    documents: dict[Digest, MemoryBlob] = field(repr=False)
    whole: bool


class ContentStoreSource:
    """Serves blobs from the files of containerd's content store, without an export.  Implements `IImageSource`.

    Manifests, configs, and what is read through reader containers are verified.  Files that k3dreg opens are only
    checked for their size: containerd verified them when they arrived, and the node verifies them again.  Hashing a GB
    takes 0.6 s of processor time, sending it from a file 0.2 to 0.3 s.
    """

    name = "content"
    at_hand = True

    def __init__(
        self,
        engine: IEngine,
        files: Sequence[IEngineFiles],
        catalogue: ICatalogue,
    ) -> None:
        """`files`: ways to the engine's files, the fastest first.  An image is read by the first that finds it."""
        self._engine = engine
        self._files = files
        self._catalogue = catalogue
        self._held: LRUCache[Digest, _Held] = LRUCache(_IMAGES_REMEMBERED)
        self._looking: SingleFlight[str, _Held] = SingleFlight()

    async def root(self, image: EngineImage, trace: Trace) -> Descriptor:
        """Return the descriptor of the root manifest or index, as the engine holds it.

        Raises `ImageIncomplete` unless the engine holds the config and all layers of at least one platform, and
        `ManifestUnknown` when the content store does not have the image or cannot be read.
        """
        held = await self._look(image)
        if not held.whole:
            raise ImageIncomplete(f"Docker holds no platform of {image.id} whole")
        if not self._catalogue.is_recorded(image):
            # Recorded because a node may ask for blobs of a manifest that it got before a restart of k3dreg.
            await self._catalogue.record(image, held.root, held.parts)
        return held.root

    async def open(self, image: EngineImage, digest: Digest, trace: Trace) -> IBlob:
        """Return a part of the image.

        Raises `BlobUnknown` if it is no part of the image, or its file is missing or has another size than its
        descriptor.
        """
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
                # The engine may have removed the file, or this way to its files may have broken: examine it anew.
                self._held.pop(image.id, None)
                if isinstance(error, ContentError):
                    log.warn("{error}", error=error)
                raise BlobUnknown(f"Docker does not hold {digest}: {error}") from error
        trace.source = self.name
        return blob

    async def loose(self, descriptor: Descriptor) -> IBlob | None:
        """Return a blob of an image whose pull may be under way, or None if the engine does not hold it.

        containerd gives a blob's file its name only when the blob is complete.
        """
        for files, directory in product(self._files, content_directories(await self._engine.info())):
            try:
                return await files.blob(content_path(directory, descriptor.digest), descriptor.digest, descriptor.size)
            except (FileAbsent, FilesUnreachable, ContentError):
                continue
        return None

    async def shutdown(self) -> None:
        """Cancel the examinations of images that are under way."""
        await self._looking.shutdown()

    # -- looking at an image ------------------------------------------------------------------------

    async def _look(self, image: EngineImage) -> _Held:
        held = self._held.get(image.id)
        if held is None or held.fingerprint != image.fingerprint:
            held = await self._looking.join(image.fingerprint, lambda: self._examine(image))
            self._held[image.id] = held
        return held

    async def _examine(self, image: EngineImage) -> _Held:
        """Read the image's manifests and configs.  Raises `ManifestUnknown` when this source cannot serve it."""
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
    """One examination of what a content store directory holds of an image."""

    def __init__(self, files: IEngineFiles, image: EngineImage, directory: str) -> None:
        self._files = files
        self._image = image
        self._directory = directory
        self._parts: dict[Digest, Descriptor] = {}
        self._documents: dict[Digest, MemoryBlob] = {}
        self._whole = False
        # Children of which the engine holds nothing.  An unavailable child of which it holds something is still read:
        # it may lack only layers that must not be distributed.
        self._lacking = {child.descriptor.digest for child in image.children if not child.available and not child.held}

    async def take(self) -> _Held:
        """Examine the image.

        Raises `FileAbsent` if the root manifest is missing, `ContentError` or `InvalidManifest` if one is damaged.
        """
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
        """Read a child manifest of an index, if the engine holds it; it may hold those of some platforms only."""
        if described.media_type not in media_types.MANIFESTS | media_types.INDEXES:
            return
        try:
            manifest = await self._manifest(described.digest, described.media_type)
        except FileAbsent:
            return
        if _ATTESTATION not in described.annotations:
            await self._check(manifest)

    async def _check(self, manifest: Manifest) -> None:
        """Set `_whole` if the config and all distributable layers of an image manifest are here."""
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
