"""Questions to registries about their tags: is Docker's image theirs, and which digest has the tag there now?"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.image import EngineImage, ImageStore
from k3dreg.docker.interfaces import IEngine
from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import AuthenticationRequired, Denied, EngineError, RedirectRefused, UpstreamFailed
from k3dreg.oci.reference import Reference
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.pull_credentials import PullCredentials
from k3dreg.registry.tag_records import TagRecord, TagRecords
from k3dreg.upstream.addresses import hostname_of
from k3dreg.upstream.origin import ITagDigests, MayAsk, every_registry


class TagQuestions:
    """Asks registries what their tags mean, and records the answers.

    A registry is asked only if Docker's image is known to be its own: k3dreg had Docker pull it for this tag, or Docker
    says that it got it from there.  `RepoDigests` is no proof, as the containerd store lists a digest for each name,
    also for what was built here.

    The question is a HEAD by k3dreg, or Docker's own if k3dreg cannot reach the registry: Docker may have a proxy, or
    certificates, or be told that the registry has no TLS.
    """

    def __init__(
        self,
        records: TagRecords,
        registries: ITagDigests,
        engine: IEngine,
        credentials: PullCredentials,
        names: OwnNames,
        clock: IReactorTime,
        may_ask: MayAsk = every_registry,
    ) -> None:
        """`may_ask` is called before a registry is asked."""
        self._records = records
        self._registries = registries
        self._engine = engine
        self._credentials = credentials
        self._names = names
        self._clock = clock
        self._may_ask = may_ask

    def refuses(self, reference: Reference) -> str | None:
        """Return why the reference is never asked about; None if it may be."""
        if reference.digest is not None:
            return "a digest always means the same image"
        registry = reference.repository.registry
        if self._names.is_own(registry):
            return f"{registry or 'its registry'} is k3dreg itself: what was pushed or built here has no other registry"
        return None

    def last_answer(self, reference: Reference) -> TagRecord | None:
        """Return what is known of the tag without a question, None for nothing."""
        return self._records.find(reference)

    async def ask(self, image: EngineImage, reference: Reference, authorization: BasicAuth | None) -> TagRecord:
        """Ask the tag's registry now, unless Docker's `image` is not its own, and return what is known then.

        `authorization` is the credentials that the client sent.  Raises `NotFound`, `Refused`, `RegistryNotAllowed` or
        `EngineError`; then what was known before is still known.
        """
        known = self._records.find(reference)
        theirs = None if known is None else known.image
        digest: Digest | None = None
        if theirs == image.id or await self._came_from_registry(image, reference):
            theirs, digest = image.id, await self._digest(reference, authorization)
        # Otherwise `theirs` is kept, as that image may get the tag back.
        record = TagRecord(theirs, digest, self._clock.seconds())
        await self._records.put(reference, record)
        return record

    async def _came_from_registry(self, image: EngineImage, reference: Reference) -> bool:
        """Return whether Docker says that it got the image from the reference's repository."""
        if image.store is not ImageStore.CONTAINERD:
            return False
        repository = reference.repository.upstream
        # Docker tells the host without its port.
        name = f"{hostname_of(str(repository.registry))}/{repository.path}"
        return name in await self._engine.pulled_from(str(image.id))

    async def _digest(self, reference: Reference, authorization: BasicAuth | None) -> Digest:
        await self._may_ask(str(reference.repository.registry))
        try:
            credentials = await self._credentials.credentials(reference, authorization)
            return await self._registries.digest(reference, credentials)
        except (AuthenticationRequired, Denied):
            self._credentials.refused(reference.repository, authorization)
            raise
        except RedirectRefused:
            raise
        except UpstreamFailed as error:
            unreachable = error
        auth = await self._credentials.registry_auth(reference, authorization)
        try:
            return (await self._engine.distribution(str(reference), auth)).digest
        except EngineError:  # Podman has no such request
            raise unreachable from None


def not_known(reference: Reference) -> str:
    """Return why Docker's image for the reference is not taken for its registry's."""
    return (
        f"nothing shows that Docker's image came from {reference.repository.registry}, so it may have been built, "
        "tagged or loaded here"
    )
