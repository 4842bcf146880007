"""Manifests and blobs of an image that the engine is pulling, before the pull has ended.

The image's registry is asked, by the engine, what the pull will bring.

The head of an answer cannot wait for a pull of a gigabyte, and need not: digest, size and media type are known as soon
as the registry has been asked, and the engine's content store has each blob as soon as the pull has finished with it.
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

# Seconds that a pull has to itself.  Asking the registry costs one more request for a manifest there, which Docker Hub
# counts as a pull; most pulls are done by then and never ask.
EARLY = 8.0
# Seconds between two looks whether the engine has a blob.
_LOOK_EVERY = 0.5
# Parts of images that are on their way.
_EXPECTED_REMEMBERED = 5000


@frozen
class Part:
    """A part of an image that is being pulled; `above` are the manifests that lead to it, the root first.

    `authorization` is what the client sent that asked for the image.
    """

    descriptor: Descriptor
    reference: Reference
    authorization: BasicAuth | None = None
    above: tuple[Digest, ...] = ()


# Gives a part out of the engine, once the pull has ended.  Raises what the pull failed with.
AfterPull = Callable[[Part, Trace], Awaitable[IBlob]]


class PullInProgress:
    """Knows what pulls under way will bring, and gives each part as soon as the engine has it."""

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

        `credentials` gives `X-Registry-Auth` for asking its registry; `early` is how many seconds a pull has before
        that is done.
        """
        self._engine = engine
        self._loose = loose
        self._is_pulling = is_pulling
        self._credentials = credentials
        self._clock = clock
        self._early = early
        self._asking: SingleFlight[tuple[Reference, str], Descriptor] = SingleFlight()
        # What registries said, for as long as the pull goes on: by the next one the tag may mean something else.
        self._told: dict[tuple[Reference, str], Descriptor] = {}
        self._expected: LRUCache[Digest, Part] = LRUCache(_EXPECTED_REMEMBERED)

    async def ended_early(self, answer: Coroutine[Deferred[Any], Any, T]) -> T | None:
        """Return `answer`, if it comes before a pull has taken long; else cancel it and return None.

        The pull goes on: cancelling `answer` ends the waiting for it.
        """
        self._told = {key: value for key, value in self._told.items() if self._is_pulling(key[0])}
        try:
            return await within(self._early, self._clock, answer, after=0)
        except NotYet:
            return None

    async def announced(self, reference: Reference, authorization: BasicAuth | None) -> Part | None:
        """Return the root that the image's registry says a pull will bring.

        None where no pull is under way, its registry cannot be asked, or the engine keeps no manifest of it.
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
        """Return a part of an image that is being pulled, or was."""
        return self._expected.get(digest)

    def is_coming(self, part: Part) -> bool:
        """Whether the pull that brings the part is under way."""
        return self._is_pulling(part.reference)

    def manifest(self, part: Part, after: AfterPull, trace: Trace) -> ServedManifest:
        """Return a manifest whose bytes follow when the engine has them, or the pull has ended."""
        descriptor = part.descriptor

        async def pending() -> IBlob:
            return PendingBlob(descriptor.digest, descriptor.size, lambda: self._document(part, after, trace))

        return ServedManifest(descriptor, pending)

    def blob(self, part: Part, after: AfterPull, trace: Trace) -> IBlob:
        """Return a blob whose bytes follow when the engine has them, or the pull has ended."""
        return PendingBlob(part.descriptor.digest, part.descriptor.size, lambda: self._open(part, after, trace))

    def shutdown(self) -> None:
        """Stop asking."""
        self._asking.shutdown()

    async def _document(self, part: Part, after: AfterPull, trace: Trace) -> IBlob:
        """Return a manifest, verified; the parts that it refers to are expected from now on."""
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
        """Return the part, when the engine has it.  Raises what the pull failed with if it ends without it."""
        while self._is_pulling(part.reference):
            blob = await self._loose.loose(part.descriptor)
            if blob is not None:
                return blob
            await deferLater(self._clock, _LOOK_EVERY)
        return await after(part, trace)

    def _expect(self, part: Part) -> Part:
        self._expected[part.descriptor.digest] = part
        return part
