"""The use case of a pull: which content a client gets, and in which order k3dreg looks for it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from attrs import define

from k3dreg.docker.image import EngineImage
from k3dreg.formats.basic_auth import BasicAuth, Credentials
from k3dreg.images.source import IRepair
from k3dreg.linking.layer_linking import LayerLinking
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    AuthenticationRequired,
    BlobUnknown,
    Denied,
    EngineUnavailable,
    ImageIncomplete,
    K3dregError,
    ManifestUnknown,
    NotAnImage,
    NotFound,
    Refused,
    refusal_for_client,
)
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry import one_remote
from k3dreg.registry.engine_content import EngineContent
from k3dreg.registry.one_remote import OneRemote
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.pull_credentials import PullCredentials
from k3dreg.registry.pull_in_progress import Part, PullInProgress
from k3dreg.registry.pushed_lookup import PushedLookup
from k3dreg.registry.refresh import Refresh
from k3dreg.registry.resolver import Resolver, digest_advice
from k3dreg.registry.use_cases import IFallback
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob, ServedManifest

T = TypeVar("T")

log = make_logger()

# Why an engine that pulls for k3dreg, through k3dreg as its mirror, gets 404: it then goes on to the next registry.
_CIRCULAR = "itself has asked Docker for it, whose registry mirror this is"
# For users who send a HEAD by hand.
_HEAD_ADVICE = "if Docker has an image of this name, GET and a node's HEAD find it (docs/pushing.md)"


@define
class Pull:
    """Looks content up for pulls: pushed content, then the engine's, then the image's registry's.

    Implements `IRegistry`.  Each method reads from top to bottom as the policy, and each step calls one collaborator.
    `repair` restores blobs that the engine has lost; without it such images are refused.  `fallback` is asked only
    after `enable_origin_fallback(True)`.  `linking` links an image's layers into the node that pulls it.  `refresh`
    finds tags that have moved in their registries.
    """

    _pushed: PushedLookup
    _names: OwnNames
    _remote: OneRemote
    _resolver: Resolver
    _credentials: PullCredentials
    _in_progress: PullInProgress
    _content: EngineContent
    _repair: IRepair | None = None
    _fallback: IFallback | None = None
    _origin_fallback: bool = False
    _linking: LayerLinking | None = None
    _refresh: Refresh | None = None

    def enable_origin_fallback(self, wanted: bool) -> None:
        """Set whether images' own registries are asked for what Docker cannot give, from the next request on."""
        self._origin_fallback = wanted

    async def manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        """Return what was pushed under the reference, else what Docker or the image's registry has.

        Raises as `IRegistry.manifest` does.
        """
        served = await self._manifest(reference, authorization, trace)
        # Docker has not unpacked the layers of an image that it still pulls.
        if self._linking is not None and self._in_progress.part(served.descriptor.digest) is None:
            await self._linking.before_answer(served, reference.repository, self.blob, trace)
        return served

    async def _manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        pushed = self._pushed.manifest(reference)
        if pushed is not None:
            trace.source = "pushed"
            return pushed
        if reference.digest is not None and self._pushed.only_pushed(reference.digest):
            raise ManifestUnknown(f"{reference} was not pushed, and Docker is not known to have it")
        if trace.circular:
            raise ManifestUnknown(f"{reference} was not pushed here, and k3dreg {_CIRCULAR}")
        is_own = self._names.is_own(reference.repository.registry)
        if is_own and trace.may_decide_a_push:
            # A push tool that finds Docker's copy sends nothing, and `docker rmi` would then remove what it pushed.
            raise ManifestUnknown(f"{reference} was not pushed here", advice=_HEAD_ADVICE)
        if (refusal := self._remote.refusal(reference.repository)) is not None:
            raise ManifestUnknown(refusal, advice=one_remote.ADVICE)
        try:
            return await self._under_any_name(reference, authorization, trace)
        except EngineUnavailable as error:
            if not is_own:
                raise
            # Pushes go on without an engine.  A client that pushes first asks whether the tag exists, and any response
            # but 200 and 404 ends its push.
            raise ManifestUnknown(f"{reference} was not pushed here, and {error}", advice=error.advice) from error

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """Return a blob.  Never starts a pull.  Raises as `IRegistry.blob` does.

        A pushed blob is served from the repositories that it was pushed to.  A blob of an image in Docker is served
        from any repository, as nodes request digests that they learned from another registry.
        """
        pushed = self._pushed.blob(repository, digest)
        if pushed is not None:
            trace.source = "pushed"
            return pushed
        if self._pushed.only_pushed(digest):
            raise BlobUnknown(f"{digest} was not pushed to {repository}, and Docker is not known to have it")
        if trace.circular:
            raise BlobUnknown(f"{digest} was not pushed to {repository}, and k3dreg {_CIRCULAR}")
        if (refusal := self._remote.refusal(repository)) is not None:
            raise BlobUnknown(refusal, advice=one_remote.ADVICE)
        try:
            return await self._content.blob(digest, trace)
        except (NotFound, ImageIncomplete) as error:
            missing = error
        coming = self._in_progress.part(digest)
        if coming is not None:
            trace.source = "pull under way"
            return self._in_progress.blob(coming, self._after_pull, trace)
        if self._fallback is None or not self._origin_fallback:
            raise missing
        remotes = self._remote.remotes(repository)
        named = remotes or self._names.own(repository).in_path or repository
        try:
            return await self._from_origin(self._fallback.blob(named, digest, trace), missing)
        except Refused as error:
            if remotes is None:
                raise
            raise missing from error  # 404, as for a manifest of the remote: see `_under_any_name`

    async def _under_any_name(
        self, reference: Reference, authorization: BasicAuth | None, trace: Trace
    ) -> ServedManifest:
        """Return the manifest of the reference; if that is unknown, of another name that the client may mean by it."""
        try:
            return await self._from_docker_or_origin(reference, authorization, trace)
        except NotFound as error:
            missing = error
        named = self._names.own(reference.repository).in_path
        if named is not None:
            # `GET /v2/ghcr.io/team/app/…` returns what Docker holds as `localhost:5005/ghcr.io/team/app`, else the same
            # as with `?ns=ghcr.io`.
            return await self._from_docker_or_origin(Reference(named, reference.target), authorization, trace)
        remotes = self._remote.remotes(reference.repository)
        if remotes is None:
            raise missing
        there = Reference(remotes, reference.target)
        try:
            # Without the client's credentials, which are for this registry.
            return await self._from_docker_or_origin(there, None, trace)
        except (NotFound, Refused) as error:
            # 404 for any error: a client that pushes first asks whether the tag exists, and any other error ends its
            # push.
            said = f"{missing}; and k3dreg could not get {there}: {error}"
            raise ManifestUnknown(said, advice=error.advice) from error

    async def _from_docker_or_origin(
        self, reference: Reference, authorization: BasicAuth | None, trace: Trace
    ) -> ServedManifest:
        """Return the manifest from Docker, else from the image's registry (`--origin-fallback`).

        The registry is asked for a tag only if the engine cannot hold what the tag names there, as Docker decides which
        image a tag means.
        """
        try:
            return await self._from_docker(reference, authorization, trace)
        except (NotFound, ImageIncomplete) as error:
            missing = error
        asks_origin = self._origin_fallback and (reference.digest is not None or isinstance(missing, NotAnImage))
        if self._fallback is None or not asks_origin:
            raise missing
        return await self._from_origin(self._fallback.manifest(reference, _shown(authorization), trace), missing)

    async def _from_docker(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        """Return the manifest that Docker has or pulls; of a long pull, before the pull has ended."""
        if reference.digest is not None:
            coming = self._in_progress.part(reference.digest)
            if coming is not None and self._in_progress.is_coming(coming):
                return self._in_progress.manifest(coming, self._after_pull, trace)
            return await self._from_engine(reference, authorization, trace)
        soon = await self._in_progress.answered_early(self._from_engine(reference, authorization, trace))
        if soon is not None:
            return soon
        coming = await self._in_progress.announced(reference, authorization)
        if coming is None:
            return await self._from_engine(reference, authorization, trace)
        trace.step("pull under way")
        return self._in_progress.manifest(coming, self._after_pull, trace)

    async def _from_engine(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        """Return the manifest from Docker, after a pull if Docker lacks the image, or a repair if it has lost blobs."""
        if reference.digest is not None:
            known = await self._content.manifest(reference.digest, trace)
            if known is not None:
                return known
        try:
            image = await self._resolver.image(
                reference, lambda: self._credentials.registry_auth(reference, authorization), trace
            )
        except (AuthenticationRequired, Denied) as error:
            self._credentials.refused(reference.repository, authorization)
            raise refusal_for_client(error, showed=authorization is not None) from error
        if self._refresh is not None:
            image = await self._refresh.current(image, reference, authorization, trace)
        if reference.digest is not None and image.id != reference.digest:
            # The classic store and Podman hold the image, but not its registry's manifest.
            raise ManifestUnknown(f"Docker cannot give {reference}", advice=digest_advice(image.store))
        root = await self._mended(image, reference, _shown(authorization), trace)
        return self._content.served(root, trace)

    async def _mended(
        self, image: EngineImage, reference: Reference, shown: Credentials | None, trace: Trace
    ) -> Descriptor:
        """Return the image's root, after a repair if the engine has lost blobs of it.

        Raises `ImageIncomplete` if it cannot be repaired.
        """
        if self._repair is None:
            return await self._content.root(image, reference, trace)
        image = await self._repair.ensure(image, reference, shown, trace)
        try:
            return await self._content.root(image, reference, trace)
        except ImageIncomplete:
            # Older engines do not report lost blobs, so reading the image is what shows them.
            image = await self._repair.mend(image, reference, shown, trace)
            return await self._content.root(image, reference, trace)

    async def _after_pull(self, part: Part, trace: Trace) -> IBlob:
        """Return a part of an image whose pull has ended.  Raises what the pull failed with.

        This reads the manifests from the root down to the part, as a node does after a pull, so that the content
        map has the part.
        """
        served = await self._from_engine(part.reference, part.authorization, trace)
        for manifest in (served.descriptor.digest, *part.above):
            reference = Reference(part.reference.repository, manifest)
            served = await self._from_engine(reference, part.authorization, trace)
            await (await served.open()).read()
        return await self._content.blob(part.descriptor.digest, trace)

    async def _from_origin(self, asked: Awaitable[T], missing: K3dregError) -> T:
        """Return the result of `asked`, a question to the image's registry; if it fails, raise `missing`.

        `AuthenticationRequired` is raised as it is, because credentials would help.
        """
        try:
            return await asked
        except AuthenticationRequired:
            raise
        except K3dregError as error:
            log.debug("and k3dreg could not get it from its registry: {error}", error=error)
            raise missing from error


def _shown(authorization: BasicAuth | None) -> Credentials | None:
    return None if authorization is None else Credentials.of(authorization)
