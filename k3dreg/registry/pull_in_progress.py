"""Answers ahead of a pull that takes long: the image's registry is asked, by the engine, what the pull will bring.

The head of an answer cannot wait for a pull of a gigabyte, and need not: digest, size and media type are known as soon
as the registry has been asked, and the engine's content store has each blob as soon as the pull has finished with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import evolve, frozen
from cachetools import LRUCache
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from k3dreg.docker.engine import IEngine
from k3dreg.docker.image import ImageStore
from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.images.source import ILooseContent
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import DigestMismatch, InvalidManifest, K3dregError, ManifestUnknown, NotFound, NotYet
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.use_cases import IRegistry
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.memory_blob import MemoryBlob
from k3dreg.streaming.pending_blob import PendingBlob
from k3dreg.streaming.single_flight import SingleFlight
from k3dreg.streaming.timeout import within

log = make_logger()

# Seconds that a pull has to itself.  Asking the registry costs one more request for a manifest there, which Docker Hub
# counts as a pull; most pulls are done by then and never ask.
EARLY = 8.0
# Seconds between two looks whether the engine has a blob.
_LOOK_EVERY = 0.5
# Parts of images that are on their way.
_EXPECTED_REMEMBERED = 5000


@frozen
class _Expected:
    """A part of an image that is being pulled; `above` are the manifests that lead to it, the root first.

    `authorization` is what the one who asked for the image showed.
    """

    descriptor: Descriptor
    reference: Reference
    authorization: BasicAuth | None = None
    above: tuple[Digest, ...] = ()


class PullInProgress:
    """A registry that does not wait for the end of a pull to say what it will bring."""

    def __init__(
        self,
        behind: IRegistry,
        engine: IEngine,
        loose: ILooseContent,
        is_pulling: Callable[[Reference], bool],
        credentials: Callable[[Reference, BasicAuth | None], Awaitable[str]],
        clock: IReactorTime,
        early: float = EARLY,
    ) -> None:
        """`behind` answers once a pull has ended.

        `is_pulling` tells whether the engine pulls a reference now; `credentials` gives `X-Registry-Auth` for asking
        its registry; `early` is how many seconds a pull has before that is done.
        """
        self._behind = behind
        self._engine = engine
        self._loose = loose
        self._is_pulling = is_pulling
        self._credentials = credentials
        self._clock = clock
        self._early = early
        self._asking: SingleFlight[tuple[Reference, str], Descriptor] = SingleFlight()
        # What registries said, for as long as the pull goes on: by the next one the tag may mean something else.
        self._told: dict[tuple[Reference, str], Descriptor] = {}
        self._expected: LRUCache[Digest, _Expected] = LRUCache(_EXPECTED_REMEMBERED)

    async def manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        """As the registry behind, or sooner."""
        if reference.digest is not None:
            return await self._by_digest(reference, reference.digest, authorization, trace)
        self._told = {key: value for key, value in self._told.items() if self._is_pulling(key[0])}
        try:
            return await within(
                self._early, self._clock, self._behind.manifest(reference, authorization, trace), after=0
            )
        except NotYet:
            # The pull goes on; this only stopped waiting for it.
            descriptor = await self._look(reference, authorization)
        if descriptor is None:
            return await self._behind.manifest(reference, authorization, trace)
        trace.step("pull under way")
        return self._served(self._expect(_Expected(descriptor, reference, authorization)), trace)

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """As the registry behind, or a part of an image that is being pulled, as soon as the engine has it."""
        try:
            return await self._behind.blob(repository, digest, trace)
        except NotFound:
            expected = self._expected.get(digest)
            if expected is None:
                raise
        trace.source = "pull under way"
        return PendingBlob(digest, expected.descriptor.size, lambda: self._open(expected, trace))

    def shutdown(self) -> None:
        """Stop asking."""
        self._asking.shutdown()

    async def _by_digest(
        self, reference: Reference, digest: Digest, authorization: BasicAuth | None, trace: Trace
    ) -> ServedManifest:
        expected = self._expected.get(digest)
        if expected is not None and self._is_pulling(expected.reference):
            return self._served(expected, trace)
        return await self._behind.manifest(reference, authorization, trace)

    def _served(self, expected: _Expected, trace: Trace) -> ServedManifest:
        descriptor = expected.descriptor

        async def pending() -> IBlob:
            return PendingBlob(descriptor.digest, descriptor.size, lambda: self._document(expected, trace))

        return ServedManifest(descriptor, pending)

    async def _look(self, reference: Reference, authorization: BasicAuth | None) -> Descriptor | None:
        """What the registry says a pull will bring; None if that cannot be known, or would be of no use."""
        if not self._is_pulling(reference):
            return None
        if (await self._engine.info()).store is not ImageStore.CONTAINERD:
            return None
        auth = await self._credentials(reference, authorization)
        told = self._told.get((reference, auth))
        if told is not None:
            return told
        try:
            told = await self._asking.join((reference, auth), lambda: self._engine.distribution(str(reference), auth))
        except K3dregError as error:
            log.debug("k3dreg could not look {reference} up before the pull: {error}", reference=reference, error=error)
            return None
        self._told[reference, auth] = told
        return told

    async def _document(self, expected: _Expected, trace: Trace) -> IBlob:
        """A manifest on its way, verified; what it refers to is on its way from now on."""
        digest = expected.descriptor.digest
        data = await (await self._open(expected, trace)).read()
        if Digest.of(data, digest.algorithm) != digest:
            raise DigestMismatch(f"{digest} does not hash to its digest")
        try:
            manifest = Manifest.parse(data, expected.descriptor.media_type)
        except InvalidManifest as error:
            raise ManifestUnknown(f"{digest} is no manifest: {error}") from error
        for child in manifest.children():
            self._expect(evolve(expected, descriptor=child, above=(*expected.above, digest)))
        return MemoryBlob(digest, data, manifest.media_type)

    async def _open(self, expected: _Expected, trace: Trace) -> IBlob:
        """The part, when the engine has it.  Raises what the pull failed with if it ends without it."""
        descriptor, reference, shown = expected.descriptor, expected.reference, expected.authorization
        while self._is_pulling(reference):
            blob = await self._loose.loose(descriptor)
            if blob is not None:
                return blob
            await deferLater(self._clock, _LOOK_EVERY)
        # The way a node would have gone, had it waited: so the registry behind learns what belongs to what.
        for manifest in ((await self._behind.manifest(reference, shown, trace)).descriptor.digest, *expected.above):
            served = await self._behind.manifest(Reference(reference.repository, manifest), shown, trace)
            await (await served.open()).read()
        return await self._behind.blob(reference.repository, descriptor.digest, trace)

    def _expect(self, expected: _Expected) -> _Expected:
        self._expected[expected.descriptor.digest] = expected
        return expected
