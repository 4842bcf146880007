"""The use case of a pull where k3dreg stands for one registry alone (`--proxy-remote-url`)."""

from __future__ import annotations

from collections.abc import Callable

from k3dreg.config.remote import Remote
from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown, ManifestUnknown, NotFound, Refused
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.use_cases import IRegistry
from k3dreg.reporting.trace import Trace
from k3dreg.store.interfaces import IPushed
from k3dreg.streaming.content import IBlob, ServedManifest

_ADVICE = 'REGISTRY_PROXY_REMOTEURL="*" lets k3dreg serve the images of every registry'


def restricted(registry: IRegistry, remote: Remote, names: OwnNames, pushed: IPushed) -> IRegistry:
    """The registry itself where every remote's images are given, else `OneRemote`."""
    if remote.only is None:
        return registry
    return OneRemote(registry, remote.only, names, lambda repository: pushed.has(names.own(repository)))


class OneRemote:
    """Another registry as far as it is about one remote registry and this one's own names.

    Who names no registry means this one's own images first, and then the remote's, as a client of the official
    registry image's pull-through cache does.
    """

    def __init__(
        self, behind: IRegistry, remote: str, names: OwnNames, is_pushed: Callable[[Repository], bool]
    ) -> None:
        """`remote` is the host, "docker.io" for Docker Hub; `is_pushed` tells whether a repository is this one's."""
        self._behind = behind
        self._remote = remote
        self._names = names
        self._is_pushed = is_pushed

    async def manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        """See `IRegistry`.  Raises `ManifestUnknown` for another registry's."""
        repository = reference.repository
        if not self._is_served(repository):
            raise ManifestUnknown(self._refusal(repository), advice=_ADVICE)
        try:
            return await self._behind.manifest(reference, authorization, trace)
        except NotFound as error:
            if not self._may_be_remote(repository):
                raise
            own = error
        there = Reference(Repository.parse(repository.path, self._remote), reference.target)
        try:
            # Without what the client sent: that was for this registry.
            return await self._behind.manifest(there, None, trace)
        except (NotFound, Refused) as error:
            # Whatever it was, no more than 404: a client that pushes asks first whether the name is taken, and any
            # other answer ends its push.
            raise ManifestUnknown(f"{own}; and k3dreg could not get {there}: {error}", advice=error.advice) from error

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """See `IRegistry`.  Raises `BlobUnknown` for another registry's."""
        if not self._is_served(repository):
            raise BlobUnknown(self._refusal(repository), advice=_ADVICE)
        try:
            return await self._behind.blob(repository, digest, trace)
        except NotFound as error:
            if not self._may_be_remote(repository):
                raise
            own = error
        try:
            return await self._behind.blob(Repository.parse(repository.path, self._remote), digest, trace)
        except (NotFound, Refused) as error:
            raise own from error

    def _is_served(self, repository: Repository) -> bool:
        """Whether it is this registry's or the remote's; a registry in the path counts as one in `ns=`."""
        registry = (self._names.own(repository).in_path or repository).registry
        return self._names.is_own(registry) or registry is None or registry.lower() == self._remote

    def _may_be_remote(self, repository: Repository) -> bool:
        return repository.registry is None and repository.in_path is None and not self._is_pushed(repository)

    def _refusal(self, repository: Repository) -> str:
        return f"k3dreg serves images of {self._remote} only, and {repository} is another registry's"
