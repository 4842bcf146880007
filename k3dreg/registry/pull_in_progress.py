"""Manifests and blobs of an image that the engine is pulling, before the pull has ended.

containerd 2.3 and later wait 30 s for the head of a response, so the head cannot wait for a pull of a gigabyte.  It
need not: the engine asks the image's registry for the digest, size and media type of the root, and its content store
has each blob as soon as the pull has fetched that blob.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from attrs import evolve, frozen
from cachetools import LRUCache
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from k3dreg.docker.image import ImageStore
from k3dreg.docker.interfaces import IEngine
from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.images.source import ILooseContent
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import DigestMismatch, InvalidManifest, K3dregError, ManifestUnknown, NotYet
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.reference import Reference
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.memory_blob import MemoryBlob
from k3dreg.streaming.pending_blob import PendingBlob
from k3dreg.streaming.single_flight import SingleFlight
from k3dreg.streaming.timeout import within

log = make_logger()

T = TypeVar("T")

# Seconds that a pull may take before the registry is asked.  That costs one more request for a manifest there, which
# Docker Hub counts as a pull.  Most pulls are done by then and cost none.
EARLY = 8.0
# Seconds between two checks whether the engine has a blob.
_LOOK_EVERY = 0.5
# Parts of images being pulled that are remembered.
_EXPECTED_REMEMBERED = 5000


@frozen
class Part:
    """A part of an image that is being pulled.

    `above` are the digests of the manifests that lead to it, the root first.  `authorization` is the credentials of the
    client that requested the image.
    """

    descriptor: Descriptor
    reference: Reference
    authorization: BasicAuth | None = None
    above: tuple[Digest, ...] = ()


# Return a part from the engine once the pull has ended.  Raises what the pull failed with.
AfterPull = Callable[[Part, Trace], Awaitable[IBlob]]


class PullInProgress:
    """Finds out which content the pulls under way will bring, and gives each part as soon as the engine has it."""

    def __init__(
        self,
        engine: IEngine,
        loose: ILooseContent,
        is_pulling: Callable[[Reference], bool],
        credentials: Callable[[Reference, BasicAuth | None], Awaitable[str]],
        clock: IReactorTime,
        early: float = EARLY,
    ) -> None:
        """`is_pulling` tells whether the engine pulls a reference now.

        `credentials` returns `X-Registry-Auth` for asking its registry, which happens when a pull has taken `early`
        seconds.
        """
        self._engine = engine
        self._loose = loose
        self._is_pulling = is_pulling
        self._credentials = credentials
        self._clock = clock
        self._early = early
        self._asking: SingleFlight[tuple[Reference, str], Descriptor] = SingleFlight()
        # The roots that registries announced.  Dropped after the pull, as the tag may name another image by the next.
        self._told: dict[tuple[Reference, str], Descriptor] = {}
        self._expected: LRUCache[Digest, Part] = LRUCache(_EXPECTED_REMEMBERED)

    async def answered_early(self, answer: Coroutine[Deferred[Any], Any, T]) -> T | None:
        """Return the result of `answer` if it comes within `early` seconds; else cancel it and return None.

        The pull itself goes on, as cancelling `answer` only stops waiting for it.
        """
        self._told = {key: value for key, value in self._told.items() if self._is_pulling(key[0])}
        try:
            return await within(self._early, self._clock, answer, after=0)
        except NotYet:
            return None

    async def announced(self, reference: Reference, authorization: BasicAuth | None) -> Part | None:
        """Return the root that the pull under way will bring, according to the image's registry.

        None if no pull is under way, the registry cannot be asked, or the engine's store keeps no manifests.
        """
        if not self._is_pulling(reference):
            return None
        if (await self._engine.info()).store is not ImageStore.CONTAINERD:
            return None
        auth = await self._credentials(reference, authorization)
        told = self._told.get((reference, auth))
        if told is None:
            try:
                told = await self._asking.join(
                    (reference, auth), lambda: self._engine.distribution(str(reference), auth)
                )
            except K3dregError as error:
                log.debug(
                    "k3dreg could not look {reference} up before the pull: {error}", reference=reference, error=error
                )
                return None
            self._told[reference, auth] = told
        return self._expect(Part(told, reference, authorization))

    def part(self, digest: Digest) -> Part | None:
        """Return the part with this digest of an image that is being pulled, or was; None if there is none."""
        return self._expected.get(digest)

    def is_coming(self, part: Part) -> bool:
        """Return whether the pull that brings the part is still under way."""
        return self._is_pulling(part.reference)

    def manifest(self, part: Part, after: AfterPull, trace: Trace) -> ServedManifest:
        """Return a manifest whose bytes follow once the engine has them, or the pull has ended."""
        descriptor = part.descriptor

        async def pending() -> IBlob:
            return PendingBlob(descriptor.digest, descriptor.size, lambda: self._document(part, after, trace))

        return ServedManifest(descriptor, pending)

    def blob(self, part: Part, after: AfterPull, trace: Trace) -> IBlob:
        """Return a blob whose bytes follow once the engine has them, or the pull has ended."""
        return PendingBlob(part.descriptor.digest, part.descriptor.size, lambda: self._open(part, after, trace))

    def shutdown(self) -> None:
        """Cancel all questions to registries."""
        self._asking.shutdown()

    async def _document(self, part: Part, after: AfterPull, trace: Trace) -> IBlob:
        """Return a verified manifest, and expect the parts that it refers to from now on."""
        digest = part.descriptor.digest
        data = await (await self._open(part, after, trace)).read()
        if Digest.of(data, digest.algorithm) != digest:
            raise DigestMismatch(f"{digest} does not hash to its digest")
        try:
            manifest = Manifest.parse(data, part.descriptor.media_type)
        except InvalidManifest as error:
            raise ManifestUnknown(f"{digest} is no manifest: {error}") from error
        for child in manifest.children():
            self._expect(evolve(part, descriptor=child, above=(*part.above, digest)))
        return MemoryBlob(digest, data, manifest.media_type)

    async def _open(self, part: Part, after: AfterPull, trace: Trace) -> IBlob:
        """Return the part once the engine has it.  Raises what the pull failed with if it ends without the part."""
        while self._is_pulling(part.reference):
            blob = await self._loose.loose(part.descriptor)
            if blob is not None:
                return blob
            await deferLater(self._clock, _LOOK_EVERY)
        return await after(part, trace)

    def _expect(self, part: Part) -> Part:
        self._expected[part.descriptor.digest] = part
        return part
