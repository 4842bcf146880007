"""Manifests and blobs of the images that the engine holds.

This module uses the sources and the store by their interfaces only.  The content map tells which image has a digest.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.image import EngineImage
from k3dreg.images.content_map import ContentMap
from k3dreg.images.source import IImageSource
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    BlobUnknown,
    DigestMismatch,
    ImageIncomplete,
    InvalidManifest,
    K3dregError,
    ManifestUnknown,
    NotFound,
    NotYet,
)
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.reference import Reference
from k3dreg.reporting.trace import Trace
from k3dreg.store.interfaces import IHeldBlobs
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.memory_blob import MemoryBlob
from k3dreg.streaming.pending_blob import PendingBlob
from k3dreg.streaming.timeout import within

# Seconds that a blob has to open before the head of its response is sent without it.
_AT_ONCE = 5.0


class EngineContent:
    """Gives manifests and blobs from the store and, through the sources, from the engine."""

    def __init__(
        self,
        sources: Sequence[IImageSource],
        store: IHeldBlobs,
        content_map: ContentMap,
        clock: IReactorTime | None = None,
    ) -> None:
        """`sources` are tried in this order.  Without a `clock`, `blob` waits for a blob however long it takes."""
        self._sources = sources
        self._store = store
        self._map = content_map
        self._clock = clock

    async def root(self, image: EngineImage, reference: Reference, trace: Trace) -> Descriptor:
        """Return the root of an image, from the first source that gives it.  Raises `NotFound`, `ImageIncomplete`."""
        failed: K3dregError | None = None
        for source in self._sources:
            try:
                return await source.root(image, trace)
            except (NotFound, ImageIncomplete) as error:
                failed = error
        raise failed or ManifestUnknown(f"no source gives {reference}")

    def served(self, root: Descriptor, trace: Trace) -> ServedManifest:
        """Return the root of an image as a manifest to serve."""
        return ServedManifest(root, lambda: self._open_manifest(root.digest, root.media_type, trace))

    async def manifest(self, digest: Digest, trace: Trace) -> ServedManifest | None:
        """Return a manifest of an image that was requested before, or exported; None for an unknown digest."""
        try:
            blob = await self._open_manifest(digest, "", trace)
        except NotFound:
            return None
        return ServedManifest(Descriptor(blob.media_type, digest, blob.size), blob.itself)

    async def blob(self, digest: Digest, trace: Trace) -> IBlob:
        """Return a blob.  Never starts a pull.

        Raises `BlobUnknown` at once for a digest that no known image has.  A blob that takes more than `_AT_ONCE`
        seconds to open is returned before it is open, if its size is known.
        """
        size = self._map.size_of(digest)
        if size is None or self._clock is None:
            return await self._open(digest, trace)
        try:
            return await within(_AT_ONCE, self._clock, self._open(digest, trace), after=0)
        except NotYet:
            # It comes late in an export.  Its size is known, so the head of the response need not wait for it.
            return PendingBlob(digest, size, lambda: self._open(digest, trace))

    async def _open_manifest(self, digest: Digest, media_type: str, trace: Trace) -> MemoryBlob:
        """Return the verified bytes of a manifest, and record its children as parts of its images.

        Clients ask for them next, and of an image that is being exported they are not recorded yet.
        """
        data = await (await self._open(digest, trace)).read()
        if Digest.of(data, digest.algorithm) != digest:
            raise DigestMismatch(f"{digest} does not hash to its digest")
        try:
            manifest = Manifest.parse(data, media_type)
        except InvalidManifest as error:
            raise ManifestUnknown(f"{digest} is no manifest: {error}") from error
        await self._map.record_children(digest, manifest.children())
        return MemoryBlob(digest, data, manifest.media_type)

    async def _open(self, digest: Digest, trace: Trace) -> IBlob:
        blob = self._store.get(digest)
        if blob is not None:
            trace.source = trace.source or "cache"
            return blob
        failed: K3dregError | None = None
        for image in self._map.images_with(digest):
            for source in self._sources:
                try:
                    return await source.open(image, digest, trace)
                except NotFound as error:
                    failed = failed or error
        raise failed or BlobUnknown(f"no image known here has {digest}")
