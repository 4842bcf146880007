"""The use case of a pull: reference -> image -> manifest -> blob.

It knows the engine, the sources and the store by their interfaces only, and HTTP not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen
from cachetools import LRUCache
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.image import EngineImage
from k3dreg.formats.basic_auth import BasicAuth, Credentials, registry_auth
from k3dreg.images.source import ICatalogue, IImageSource, IRepair
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    AuthenticationRequired,
    BlobUnknown,
    Denied,
    DigestMismatch,
    ImageIncomplete,
    InvalidManifest,
    K3dregError,
    ManifestUnknown,
    NotFound,
    NotYet,
    refusal_for_client,
)
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.resolver import Resolver, digest_advice
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.trace import Trace
from k3dreg.store.interfaces import IBlobStore
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.memory_blob import MemoryBlob
from k3dreg.streaming.pending_blob import PendingBlob
from k3dreg.streaming.timeout import within
from k3dreg.upstream.origin import ICredentialSource

log = make_logger()

# Which content belongs to which image, for images asked for since the start: an image has some tens of parts, so this
# is room for hundreds of images in a few MB.  The catalogue knows it of images that were exported, across restarts.
_PARTS_REMEMBERED = 20_000
# Seconds that a blob has to begin before its head is sent without it.
_AT_ONCE = 5.0


@frozen
class _Part:
    """A blob of an image that was served, and its size."""

    image: EngineImage
    size: int


class EngineRegistry:
    """Answers for manifests and blobs out of the store and, through the sources, out of the engine."""

    def __init__(
        self,
        resolver: Resolver,
        sources: Sequence[IImageSource],
        store: IBlobStore,
        catalogue: ICatalogue,
        credentials: ICredentialSource | None = None,
        repair: IRepair | None = None,
        clock: IReactorTime | None = None,
    ) -> None:
        """`sources` in the order in which they are to be tried.

        `credentials` are for the engine's pulls where a request brings none; None for no others than the request's.
        `repair` mends images of which the engine has lost blobs; without it they are refused.
        """
        self._repair = repair
        self._credentials = credentials
        self._resolver = resolver
        self._sources = sources
        self._store = store
        self._catalogue = catalogue
        self._parts: LRUCache[Digest, _Part] = LRUCache(_PARTS_REMEMBERED)
        self._clock = clock

    async def manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        """What the reference means now.

        Raises `ManifestUnknown` or another `NotFound`, a `Refused` when the engine's pull was refused, and
        `EngineError`.  Cancelling leaves pulls and exports running for whoever asks next.
        """
        if reference.digest is not None:
            try:
                return await self._manifest_by_digest(reference.digest, trace)
            except NotFound:
                pass
        try:
            image = await self._resolver.image(reference, lambda: self.pull_auth(reference, authorization), trace)
        except (AuthenticationRequired, Denied) as error:
            self._tell_of_refusal(reference.repository, authorization)
            raise refusal_for_client(error, showed=authorization is not None) from error
        if reference.digest is not None and image.id != reference.digest:
            # The classic store and Podman: the image is there, and its registry's manifest is not.
            raise ManifestUnknown(f"Docker cannot give {reference}", advice=digest_advice(image.store))
        shown = None if authorization is None else Credentials.of(authorization)
        image, root = await self._whole(image, reference, shown, trace)
        self._parts[root.digest] = _Part(image, root.size)
        return ServedManifest(root, lambda: self._open_manifest(root.digest, root.media_type, trace))

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """A blob, whichever repository it is asked under: nodes ask for digests they learned elsewhere.

        Never starts a pull.  Raises `BlobUnknown` at once for a digest that no known image has.
        """
        part = self._parts.get(digest)
        if part is None or self._clock is None:
            return await self._open(digest, trace)
        try:
            return await within(_AT_ONCE, self._clock, self._open(digest, trace), after=0)
        except NotYet:
            # Its turn in an export comes later; its size is known, so the head of the answer need not wait for it.
            return PendingBlob(digest, part.size, lambda: self._open(digest, trace))

    def knows(self, digest: Digest) -> bool:
        """Whether it is known to be a part of some image of the engine's.  No I/O."""
        return digest in self._parts or bool(self._catalogue.images_with(digest))

    async def pull_auth(self, reference: Reference, authorization: BasicAuth | None) -> str:
        """The value of `X-Registry-Auth` for a pull: what the request brought, else what this host has."""
        registry = reference.repository.registry
        if authorization is not None:
            return registry_auth(authorization, registry)
        if self._credentials is None or registry is None:
            return ""
        return await self._credentials.registry_auth(registry)

    def _tell_of_refusal(self, repository: Repository, authorization: BasicAuth | None) -> None:
        """Credentials of this host that were refused are looked for anew the next time."""
        if authorization is None and self._credentials is not None and repository.registry is not None:
            self._credentials.refused(repository.registry)

    async def _whole(
        self, image: EngineImage, reference: Reference, shown: Credentials | None, trace: Trace
    ) -> tuple[EngineImage, Descriptor]:
        """The image, mended if the engine has lost blobs of it, and its root.  Raises `ImageIncomplete`."""
        if self._repair is None:
            return image, await self._root(image, reference, trace)
        image = await self._repair.ensure(image, reference, shown, trace)
        try:
            return image, await self._root(image, reference, trace)
        except ImageIncomplete:
            # Seen by reading it: not every engine tells.
            image = await self._repair.mend(image, reference, shown, trace)
            return image, await self._root(image, reference, trace)

    async def _root(self, image: EngineImage, reference: Reference, trace: Trace) -> Descriptor:
        failed: K3dregError | None = None
        for source in self._sources:
            try:
                return await source.root(image, trace)
            except (NotFound, ImageIncomplete) as error:
                failed = error
        raise failed or ManifestUnknown(f"no source gives {reference}")

    async def _manifest_by_digest(self, digest: Digest, trace: Trace) -> ServedManifest:
        """A manifest that is known by its digest already.  Raises `NotFound`."""
        blob = await self._open_manifest(digest, "", trace)
        return ServedManifest(Descriptor(blob.media_type, digest, blob.size), blob.itself)

    async def _open_manifest(self, digest: Digest, media_type: str, trace: Trace) -> MemoryBlob:
        """The manifest's bytes, verified; whatever it refers to is remembered as part of the same image."""
        data = await (await self._open(digest, trace)).read()
        if Digest.of(data, digest.algorithm) != digest:
            raise DigestMismatch(f"{digest} does not hash to its digest")
        try:
            manifest = Manifest.parse(data, media_type)
        except InvalidManifest as error:
            raise ManifestUnknown(f"{digest} is no manifest: {error}") from error
        part = self._parts.get(digest)
        if part is not None:
            for child in manifest.children():
                self._parts[child.digest] = _Part(part.image, child.size)
        return MemoryBlob(digest, data, manifest.media_type)

    async def _open(self, digest: Digest, trace: Trace) -> IBlob:
        blob = self._store.get(digest)
        if blob is not None:
            trace.source = trace.source or "cache"
            return blob
        failed: K3dregError | None = None
        for image in self._images_with(digest):
            for source in self._sources:
                try:
                    return await source.open(image, digest, trace)
                except NotFound as error:
                    failed = failed or error
        raise failed or BlobUnknown(f"no image known here has {digest}")

    def _images_with(self, digest: Digest) -> Iterator[EngineImage]:
        recent = self._parts.get(digest)
        if recent is not None:
            yield recent.image
        for image in self._catalogue.images_with(digest):
            if recent is None or image.id != recent.image.id:
                yield image
