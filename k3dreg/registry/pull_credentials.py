"""Credentials for the engine's pulls."""

from __future__ import annotations

from k3dreg.formats.basic_auth import BasicAuth, Credentials, registry_auth
from k3dreg.oci.reference import Reference, Repository
from k3dreg.upstream.origin import ICredentialSource


class PullCredentials:
    """Chooses between the credentials of a request and, for a request without any, those of this host."""

    def __init__(self, host: ICredentialSource | None = None) -> None:
        """`host` finds this host's credentials; with None, only those of requests are used."""
        self._host = host

    async def registry_auth(self, reference: Reference, authorization: BasicAuth | None) -> str:
        """Return the value of `X-Registry-Auth` for a pull of `reference`; "" for none."""
        registry = reference.repository.registry
        if authorization is not None:
            return registry_auth(authorization, registry)
        if self._host is None or registry is None:
            return ""
        return await self._host.registry_auth(registry)

    async def credentials(self, reference: Reference, authorization: BasicAuth | None) -> Credentials | None:
        """Return the credentials for a request of k3dreg's own to the registry of `reference`, None for none."""
        registry = reference.repository.registry
        if authorization is not None:
            return Credentials.of(authorization)
        return None if self._host is None or registry is None else await self._host.credentials(registry)

    def refused(self, repository: Repository, authorization: BasicAuth | None) -> None:
        """Report that the registry refused a pull, so that this host's credentials are looked up anew if used."""
        if authorization is None and self._host is not None and repository.registry is not None:
            self._host.refused(repository.registry)
