"""Detect and repair images of which Docker's containerd store has lost blobs.

Causes and remedies: moby#49473, containerd#8973.  If a snapshot of a layer already exists, a pull does not fetch the
layer's blob, so the engine has only the unpacked files of that layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.image import ChildManifest, EngineImage, ImageStore
from k3dreg.docker.interfaces import IEngine
from k3dreg.formats.basic_auth import Credentials
from k3dreg.images.repair_methods import load, rebuild
from k3dreg.images.source import IImageSource
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    AuthenticationRequired,
    BlobUnknown,
    EngineError,
    ImageIncomplete,
    InvalidName,
    K3dregError,
    NotFound,
    RegistryNotAllowed,
)
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.platform import Platform
from k3dreg.oci.reference import Reference, Repository
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.trace import Trace
from k3dreg.store.interfaces import IHeldBlobs
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.negative_cache import NegativeCache
from k3dreg.streaming.single_flight import SingleFlight
from k3dreg.upstream.origin import ICredentialSource, IOrigin, MayAsk, every_registry

log = make_logger()

# Seconds for which a failed repair is not tried again: a kubelet retries every ten seconds to five minutes.
_FAILED_FOR = 300.0

ADVICE = (
    "Docker's containerd image store has lost blobs of this image (moby#49473, containerd#8973). Fetch them on "
    "Docker's host: `ctr -n moby content fetch IMAGE` or `nerdctl -n moby image pull --unpack=false IMAGE`; or remove "
    "the image and all that share layers with it, and pull; Docker 29.9 and later repair it at the next `docker pull`"
)


def broken_children(image: EngineImage) -> list[ChildManifest]:
    """Return the image manifests that the engine holds in part; none if it does not tell (API below 1.48).

    A platform that was never pulled has at most its manifest in the engine, and is not broken.  But if no platform of
    the image is whole, a platform with only its manifest counts as broken, too.
    """
    images = [child for child in image.children if child.kind == "image"]
    some_are_whole = any(child.available for child in images)
    return [
        child
        for child in images
        if not child.available and child.held > (child.descriptor.size if some_are_whole else 0)
    ]


@frozen
class _Case:
    """The key of a repair: an image, and the credentials that the client sent, or None."""

    image: Digest
    shown: Credentials | None


class Repair:
    """Repairs images by a build or by loading fetched blobs.  Implements `IRepair`.

    One repair runs at a time for each image and credentials.  A failed one is not repeated for `_FAILED_FOR` seconds.
    """

    def __init__(
        self,
        engine: IEngine,
        origin: IOrigin,
        credentials: ICredentialSource,
        probes: Sequence[IImageSource],
        store: IHeldBlobs,
        clock: IReactorTime,
        may_ask: MayAsk = every_registry,
    ) -> None:
        """`may_ask` is called before Docker or `origin` ask a registry.

        `probes`: sources that can tell whether the engine holds a single blob.  Without one, all blobs of the broken
        platforms are fetched.
        """
        self._engine = engine
        self._origin = origin
        self._credentials = credentials
        self._probes = probes
        self._store = store
        self._clock = clock
        self._may_ask = may_ask
        self._repairs: SingleFlight[_Case, None] = SingleFlight()
        self._failed: NegativeCache[_Case] = NegativeCache(clock)
        self._mended: set[_Case] = set()

    async def ensure(
        self, image: EngineImage, reference: Reference, shown: Credentials | None, trace: Trace
    ) -> EngineImage:
        broken = broken_children(image)
        for child in broken:
            if not await self._lacks_foreign_layers_only(image, child):
                break
        else:
            return image
        try:
            return await self.mend(image, reference, shown, trace)
        except ImageIncomplete as error:
            if not any(child.available for child in image.children):
                raise
            # Another platform of the image is whole, and the node may want that one.
            log.warn(
                "k3dreg serves only the platforms of {reference} that Docker holds whole: {error}",
                reference=reference,
                error=error,
            )
            return image

    async def mend(
        self, image: EngineImage, reference: Reference, shown: Credentials | None, trace: Trace
    ) -> EngineImage:
        if image.store is not ImageStore.CONTAINERD:
            raise ImageIncomplete(f"Docker holds {reference} in part")
        case = _Case(image.id, shown)
        self._failed.check(case)
        if not image.children and case in self._mended:
            # This engine does not tell whether the last repair helped.  A second call for the same case shows that it
            # did not.
            self._mended.discard(case)
            error = ImageIncomplete(f"Docker still lacks blobs of {reference} after they were loaded", advice=ADVICE)
            self._remember(case, error)
            raise error
        await self._repairs.join(case, lambda: self._repair(case, image, reference))
        trace.step("repair")
        return await self._engine.inspect(str(image.id))

    def shutdown(self) -> None:
        """Cancel all repairs."""
        self._repairs.shutdown()

    async def _repair(self, case: _Case, image: EngineImage, reference: Reference) -> None:
        started = self._clock.seconds()
        log.warn("Docker has lost blobs of {reference}; k3dreg is repairing it", reference=reference)
        try:
            how = await self._try(case, image, reference)
        except (ImageIncomplete, AuthenticationRequired) as error:
            self._remember(case, error)
            raise
        self._failed.forget(case)
        if not image.children:
            self._mended.add(case)
        seconds = self._clock.seconds() - started
        log.info("{reference} is whole again, {how}, after {s:.1f} s", reference=reference, how=how, s=seconds)

    def _remember(self, case: _Case, error: K3dregError) -> None:
        log.error("{error}", error=error.explained)
        self._failed.remember(case, error, _FAILED_FOR)

    async def _try(self, case: _Case, image: EngineImage, reference: Reference) -> str:
        """Repair the image; return how, for the log.  Raises `ImageIncomplete` or `AuthenticationRequired`."""
        reasons: list[str] = []
        denied: AuthenticationRequired | None = None
        for repository in _repositories(image, reference):
            try:
                await self._may_ask(str(repository.registry))
            except RegistryNotAllowed as error:
                reasons.append(str(error))
                continue
            try:
                await self._rebuild(repository, image)
            except EngineError as error:
                reasons.append(f"a build to fetch them failed: {error}")
            else:
                if not await self._is_broken(image):
                    return f"by a build from {repository}"
            try:
                count = await self._refill(repository, image, case.shown)
            except AuthenticationRequired as error:
                denied = denied or error
                reasons.append(str(error))
            except K3dregError as error:
                reasons.append(str(error))
            else:
                if not await self._is_broken(image):
                    return f"with {count} blobs from {repository}"
                reasons.append("Docker still lacks blobs after they were loaded")
        if denied is not None and case.shown is None:
            raise AuthenticationRequired(
                f"Docker has lost blobs of {reference}, and k3dreg may not fetch them: {denied}", advice=ADVICE
            )
        raise ImageIncomplete(
            f"Docker has lost blobs of {reference}, and k3dreg could not fetch them: "
            f"{'; '.join(reasons) or 'their registry is not known'}",
            advice=ADVICE,
        )

    async def _rebuild(self, repository: Repository, image: EngineImage) -> None:
        """Build `FROM` each broken platform.

        Raises `EngineError`, also for an engine that does not tell which platforms are broken.
        """
        broken = broken_children(image)
        if not broken:
            raise EngineError("this engine does not say which platforms are incomplete")
        for child in broken:
            alone = child.descriptor.digest == image.id
            await rebuild(self._engine, repository, image.id, None if alone else child.descriptor.platform)

    async def _refill(self, repository: Repository, image: EngineImage, shown: Credentials | None) -> int:
        """Fetch the missing blobs and load them into the engine.  Return how many there were."""
        assert repository.registry is not None
        credentials = shown or await self._credentials.credentials(repository.registry)
        root, manifests = await self._manifests(repository, image, credentials)
        wanted = [
            part
            for manifest in manifests
            for part in manifest.children()
            if media_types.is_distributable(part.media_type)
        ]
        release = self._store.hold([part.digest for part in wanted])
        try:
            missing: dict[Digest, IBlob] = {}
            for part in wanted:
                if part.digest not in missing and not await self._is_held(image, part.digest):
                    missing[part.digest] = await self._origin.fetch(repository, part.digest, part.size, credentials)
            if missing:
                await load(self._engine, root, list(missing.values()))
            return len(missing)
        finally:
            release()

    async def _manifests(
        self, repository: Repository, image: EngineImage, credentials: Credentials | None
    ) -> tuple[Descriptor, list[Manifest]]:
        """Return the descriptor of the root, and the manifests of the broken platforms."""
        data = await self._document(repository, image, image.id, credentials)
        manifest = Manifest.parse(data)
        root = Descriptor(manifest.media_type, image.id, len(data))
        if not manifest.is_index:
            return root, [manifest]
        broken = {child.descriptor.digest for child in broken_children(image)}
        found = []
        for child in manifest.manifests:
            if child.digest in broken or (not broken and _matches(child.platform, image.platform)):
                data = await self._document(repository, image, child.digest, credentials)
                found.append(Manifest.parse(data, child.media_type))
        return root, found

    async def _document(
        self, repository: Repository, image: EngineImage, digest: Digest, credentials: Credentials | None
    ) -> bytes:
        """Return a manifest: from k3dreg's store or the engine, else from the registry, which may have deleted it."""
        blob = self._store.get(digest) or await self._probe(image, digest)
        if blob is not None:
            with contextlib.suppress(K3dregError):
                data = await blob.read()
                if Digest.of(data, digest.algorithm) == digest:
                    return data
        return (await self._origin.manifest(Reference(repository, digest), credentials))[1]

    async def _probe(self, image: EngineImage, digest: Digest) -> IBlob | None:
        """Return a part of the image from the engine's files; None if it is missing or no probe can read them."""
        for probe in self._probes:
            with contextlib.suppress(K3dregError):
                return await probe.open(image, digest, Trace())
        return None

    async def _lacks_foreign_layers_only(self, image: EngineImage, child: ChildManifest) -> bool:
        """Return whether a manifest lacks only non-distributable layers, which Docker 28 counts as missing, too."""
        blob = await self._probe(image, child.descriptor.digest)
        if blob is None:
            return False
        parts = list(Manifest.parse(await blob.read(), child.descriptor.media_type).children())
        needed = [part for part in parts if media_types.is_distributable(part.media_type)]
        if len(needed) == len(parts):
            return False
        return all([await self._is_held(image, part.digest) for part in needed])

    async def _is_held(self, image: EngineImage, digest: Digest) -> bool:
        for probe in self._probes:
            try:
                await probe.open(image, digest, Trace())
            except BlobUnknown:
                return False
            except K3dregError:
                continue
            return True
        return False

    async def _is_broken(self, image: EngineImage) -> bool:
        """Return whether the engine still reports missing blobs.

        False for an engine that does not tell; serving the image then shows whether blobs are missing.
        """
        try:
            return bool(broken_children(await self._engine.inspect(str(image.id))))
        except NotFound:
            return True


def _matches(one: Platform | None, other: Platform | None) -> bool:
    """Return whether two platforms have the same OS and architecture.  Old engines leave out the variant."""
    return one is not None and other is not None and (one.os, one.architecture) == (other.os, other.architecture)


def _repositories(image: EngineImage, reference: Reference) -> Iterator[Repository]:
    """Yield the repositories that may have the image: the requested one, then the engine's other names for it."""
    asked = reference.repository.upstream
    named = [repository for name in image.repo_digests if (repository := _parse(name.partition("@")[0])) is not None]
    if asked in named or not named:
        yield asked
    yield from (repository for repository in dict.fromkeys(named) if repository != asked)


def _parse(name: str) -> Repository | None:
    """Return the repository of a name as Docker shows it (`nginx`, `127.0.0.1:5000/app`), or None if it is none."""
    try:
        return Repository.of_name(name).upstream
    except InvalidName:
        return None
