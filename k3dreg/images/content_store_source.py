"""Read the containerd image store in place: its manifests and blobs are files named by their digests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from attrs import frozen
from twisted.internet.defer import Deferred

from k3dreg.docker.image import EngineImage
from k3dreg.docker.interfaces import IEngine
from k3dreg.engine_files.engine_files import IEngineFiles
from k3dreg.engine_files.layout import content_directories, content_path
from k3dreg.images.content_map import ContentMap
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
    K3dregError,
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

# Bytes of a blob that is verified before it is served.  Docker's manifests and configs are below 100 KiB.
_LARGEST_VERIFIED = 1024 * 1024
# Manifests in an image at most.  The largest known index has some sixty, including attestations.
_MANIFESTS = 1000
# The annotation by which BuildKit marks an attestation in an index: a manifest about an image, which does not run.
_ATTESTATION = "vnd.docker.reference.type"


@frozen
class _Found:
    """What an examination of an image has found.

    `parts`: the sizes in bytes of what its manifests refer to, whether the engine holds it or not.  `whole`: the engine
    holds all blobs of at least one platform.
    """

    root: Descriptor
    parts: dict[Digest, int]
    whole: bool


class ContentStoreSource:
    """Serves blobs from the files of containerd's content store, without an export.  Implements `IImageSource`.

    Verified are blobs of up to 1 MiB, which manifests and configs are, and all that is read through reader containers.
    Larger files that k3dreg opens are only checked for their size: containerd verified them when they arrived, and the
    node verifies them again.  Hashing a GB takes 0.6 s of processor time, sending it from a file 0.2 to 0.3 s.
    """

    name = "content"
    at_hand = True

    def __init__(
        self,
        engine: IEngine,
        files: Sequence[IEngineFiles],
        content_map: ContentMap,
    ) -> None:
        """`files`: ways to the engine's files, the fastest first.  Content is read by the first that finds it."""
        self._engine = engine
        self._files = files
        self._map = content_map
        self._looking: SingleFlight[str, _Found] = SingleFlight()

    async def root(self, image: EngineImage, trace: Trace) -> Descriptor:
        """Return the descriptor of the root manifest or index, as the engine holds it.

        An image is examined when it is not recorded with its fingerprint, and again after a part of it was missing.
        Raises `ImageIncomplete` unless the engine holds the config and all layers of at least one platform, and
        `ManifestUnknown` when the content store does not have the image or cannot be read.
        """
        root = self._map.root_of(image, self.name)
        if root is None:
            found = await self._look(image)
            if not found.whole:
                raise ImageIncomplete(f"Docker holds no platform of {image.id} whole")
            root = found.root
        return root

    async def open(self, image: EngineImage, digest: Digest, trace: Trace) -> IBlob:
        """Return a part of the image.

        Raises `BlobUnknown` if it is no part of the image, or its file is missing or has another size than its
        descriptor.
        """
        size = self._map.size_in(image, digest)
        if size is None:
            try:
                size = (await self._look(image)).parts.get(digest)
            except ManifestUnknown as error:
                raise BlobUnknown(str(error)) from error
            if size is None:
                raise BlobUnknown(f"{digest} is not a part of the image {image.id}")
        try:
            blob = await self._find(digest, size)
        except (FileAbsent, FilesUnreachable, ContentError) as error:
            if isinstance(error, ContentError):
                log.warn("{error}", error=error)
            # The engine may have removed the file: let `root` examine the image anew.
            await self._map.expire(self.name, image)
            raise BlobUnknown(f"Docker does not hold {digest}: {error}") from error
        trace.source = self.name
        return blob

    async def loose(self, descriptor: Descriptor) -> IBlob | None:
        """Return a blob of an image whose pull may be under way, or None if the engine does not hold it.

        containerd gives a blob's file its name only when the blob is complete.
        """
        try:
            return await self._find(descriptor.digest, descriptor.size)
        except (FileAbsent, FilesUnreachable, ContentError):
            return None

    async def shutdown(self) -> None:
        """Cancel the examinations of images that are under way."""
        await self._looking.shutdown()

    async def _find(self, digest: Digest, size: int) -> IBlob:
        """Return a blob by the first way that finds it.  Raises `FileAbsent`, `FilesUnreachable` or `ContentError`."""
        failed: K3dregError = FileAbsent("the engine has no containerd image store")
        for files, directory in product(self._files, content_directories(await self._engine.info())):
            try:
                blob = await files.blob(content_path(directory, digest), digest, size)
                return MemoryBlob(digest, await blob.read()) if size <= _LARGEST_VERIFIED else blob
            except (FileAbsent, FilesUnreachable, ContentError) as error:
                failed = failed if isinstance(failed, ContentError) else error
        raise failed

    # -- looking at an image ------------------------------------------------------------------------

    def _look(self, image: EngineImage) -> Deferred[_Found]:
        return self._looking.join(image.fingerprint, lambda: self._examine(image))

    async def _examine(self, image: EngineImage) -> _Found:
        """Read the image's manifests and configs, and record its parts.

        Raises `ManifestUnknown` when this source cannot serve it.
        """
        directories = content_directories(await self._engine.info())
        if not directories:
            raise ManifestUnknown("the engine has no containerd image store")
        complaint = ""
        for files, directory in product(self._files, directories):
            try:
                found = await _Look(files, image, directory).take()
            except (FileAbsent, FilesUnreachable) as error:
                complaint = str(error)
            except (ContentError, InvalidManifest) as error:
                complaint = str(error)
                log.warn("{image} cannot be read in Docker's content store: {error}", image=image.id, error=error)
            else:
                await self._map.record(self.name, image, found.root if found.whole else None, found.parts)
                return found
        raise ManifestUnknown(f"the manifest of {image.id} cannot be read in Docker's content store: {complaint}")


class _Look:
    """One examination of what a content store directory holds of an image."""

    def __init__(self, files: IEngineFiles, image: EngineImage, directory: str) -> None:
        self._files = files
        self._image = image
        self._directory = directory
        self._parts: dict[Digest, int] = {}
        self._manifests = 0
        self._whole = False
        # Children of which the engine holds nothing.  An unavailable child of which it holds something is still read:
        # it may lack only layers that must not be distributed.
        self._lacking = {child.descriptor.digest for child in image.children if not child.available and not child.held}

    async def take(self) -> _Found:
        """Examine the image.

        Raises `FileAbsent` if the root manifest is missing, `ContentError` or `InvalidManifest` if one is damaged.
        """
        image = self._image
        told = image.descriptor.media_type if image.descriptor is not None else ""
        data = await self._read(image.id, LARGEST_MANIFEST)
        manifest = await self._manifest(data, told)
        await self._check(manifest)
        self._parts[image.id] = len(data)
        return _Found(Descriptor(manifest.media_type, image.id, len(data)), self._parts, self._whole)

    async def _manifest(self, data: bytes, media_type: str) -> Manifest:
        manifest = Manifest.parse(data, media_type)
        for part in manifest.children():
            self._parts.setdefault(part.digest, part.size)
        self._manifests += 1
        if self._manifests > _MANIFESTS:
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
            manifest = await self._manifest(await self._read(described.digest, LARGEST_MANIFEST), described.media_type)
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
        if described.size > _LARGEST_VERIFIED:
            await self._check_size(described)
        else:
            await self._read(described.digest, _LARGEST_VERIFIED)

    async def _read(self, digest: Digest, limit: int) -> bytes:
        data = await self._files.read(content_path(self._directory, digest), limit)
        if Digest.of(data, digest.algorithm) != digest:
            raise DigestMismatch(f"{digest} does not hash to its digest on the engine's disk")
        return data
