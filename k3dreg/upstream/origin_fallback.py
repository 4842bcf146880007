"""Get from the image's own registry what Docker cannot give: `--origin-fallback`."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen
from cachetools import LRUCache
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import AuthenticationRequired, BlobUnknown, Denied, K3dregError, refusal_for_client
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.reference import Reference, Repository
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.memory_blob import MemoryBlob
from k3dreg.streaming.negative_cache import NegativeCache
from k3dreg.streaming.single_flight import SingleFlight
from k3dreg.upstream.origin import ICredentialSource, IOrigin, MayAsk, every_registry

log = make_logger()

# Parts of images whose size and credentials are remembered, in memory only.  An image has some tens of parts.
_PARTS_REMEMBERED = 20_000


@frozen
class _Part:
    """The size of a part of an image, in bytes, and the credentials with which the image's manifest was fetched."""

    size: int
    credentials: Credentials | None


class OriginFallback:
    """Fetches manifests and blobs from images' own registries (`IFallback`).  The owner calls `shutdown` in the end."""

    def __init__(
        self,
        origin: IOrigin,
        credentials: ICredentialSource,
        clock: IReactorTime,
        is_own: Callable[[str | None], bool] = lambda registry: registry is None,
        may_ask: MayAsk = every_registry,
    ) -> None:
        """`is_own` tells whether a registry (None: none was named) is k3dreg itself, which is never asked.

        `may_ask` is called before another registry is asked, and before credentials for it are looked up.
        """
        self._origin = origin
        self._credentials = credentials
        self._is_own = is_own
        self._may_ask = may_ask
        self._parts: LRUCache[tuple[Repository, Digest], _Part] = LRUCache(_PARTS_REMEMBERED)
        self._refused: NegativeCache[tuple[str, Reference, Credentials | None]] = NegativeCache(clock)
        # Single flight, because registries limit the number of requests, and many nodes want the same manifest.
        self._asking: SingleFlight[tuple[Reference, Credentials | None], tuple[Descriptor, bytes]] = SingleFlight()

    async def manifest(self, reference: Reference, shown: Credentials | None, trace: Trace) -> ServedManifest:
        """Return the manifest that the registry has for the reference now.

        Without credentials from the client (`shown`), those of this host are used.  What a tag means is never cached.
        A refusal is remembered for a while.
        """
        repository = await self._upstream(reference.repository)
        key = ("manifest", reference, shown)
        self._refused.check(key)
        credentials = shown or await self._of_host(repository)
        try:
            descriptor, data = await self._asking.join(
                (reference, credentials), lambda: self._origin.manifest(reference, credentials)
            )
        except K3dregError as error:
            log.info(
                "k3dreg could not get {reference} from its registry either: {error}", reference=reference, error=error
            )
            told = error
            if isinstance(error, AuthenticationRequired | Denied):
                told = refusal_for_client(error, showed=shown is not None)
                if shown is None:
                    self._credentials.refused(str(repository.registry))
            self._refused.remember_answer(key, told)
            raise told from error
        trace.source = "registry"
        for child in Manifest.parse(data, descriptor.media_type).children():
            self._parts[repository, child.digest] = _Part(child.size, credentials)
        blob = MemoryBlob(descriptor.digest, data, descriptor.media_type)
        return ServedManifest(descriptor, blob.itself)

    def shutdown(self) -> Deferred[None]:
        """Cancel the running requests for manifests and start no more; fire when they have ended."""
        return self._asking.shutdown()

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """Return a blob from the repository's registry.

        The credentials are those with which `manifest` fetched a manifest that lists the blob, else those of this host.
        """
        repository = await self._upstream(repository)
        part = self._parts.get((repository, digest))
        if part is None:
            key = ("blob", Reference(repository, digest), None)
            self._refused.check(key)
            credentials = await self._of_host(repository)
            try:
                blob = await self._origin.blob(repository, digest, None, credentials)
            except K3dregError as error:
                self._refused.remember_answer(key, error)
                raise
        else:
            blob = await self._origin.blob(repository, digest, part.size, part.credentials)
        trace.source = "registry"
        return blob

    async def _upstream(self, repository: Repository) -> Repository:
        if self._is_own(repository.registry) or self._is_own(repository.upstream.registry):
            raise BlobUnknown(f"{repository} is one of k3dreg's own names")
        upstream = repository.upstream
        await self._may_ask(str(upstream.registry))
        return upstream

    async def _of_host(self, repository: Repository) -> Credentials | None:
        assert repository.registry is not None
        return await self._credentials.credentials(repository.registry)
