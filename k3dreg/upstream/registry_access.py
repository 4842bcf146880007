"""Requests to registries' APIs with the authentication that they require."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from twisted.internet.interfaces import IReactorTime

from k3dreg.formats.basic_auth import Credentials
from k3dreg.formats.challenge import parse_challenges
from k3dreg.oci import media_types
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    AuthenticationRequired,
    Denied,
    InvalidDigest,
    ManifestUnknown,
    NotFound,
    RateLimited,
    UpstreamFailed,
)
from k3dreg.oci.reference import Reference, Repository
from k3dreg.upstream.registry_requests import RegistryResponse, Requests, base_url
from k3dreg.upstream.tokens import Authorizer

# Every type of manifest and index.
ACCEPT = ", ".join(sorted(media_types.MANIFESTS | media_types.INDEXES))


class RegistryAccess:
    """Sends requests to registries (`ITagDigests`)."""

    def __init__(self, requests: Requests, clock: IReactorTime) -> None:
        self._requests = requests
        self._authorizer = Authorizer(requests, clock)

    async def digest(self, reference: Reference, credentials: Credentials | None) -> Digest:
        """Return the digest that the registry has for a tag: see `ITagDigests`."""
        repository = reference.repository.upstream
        path = f"/v2/{repository.path}/manifests/{reference.target}"
        answer = await self.get(repository, path, {"Accept": ACCEPT}, credentials, ManifestUnknown, method="HEAD")
        self._requests.body(answer, "an answer").close()
        told = answer.header("docker-content-digest")
        try:
            return Digest.parse(told)
        except InvalidDigest:
            raise UpstreamFailed(f"{answer.host} does not say which digest {reference} has") from None

    async def get(
        self,
        repository: Repository,
        path: str,
        headers: Mapping[str, str],
        credentials: Credentials | None,
        absent: type[NotFound],
        *,
        method: str = "GET",
    ) -> RegistryResponse:
        """Return an answer of status 200 or 206, after authentication if the registry requires it.

        The caller must pass it to `body` or `read` of `Requests`.  Cancelling closes the connection.

        Raises `absent` for a 404, and a `Refused` for any other status.
        """
        assert repository.registry is not None
        url = base_url(repository.registry) + path
        shown = await self._authorizer.known(repository, credentials)
        answer = await self._requests.get(url, headers, shown, method=method)
        # A host that the registry redirected to is not the registry, so it must not get the registry's credentials.
        if answer.status == 401 and answer.host == urlsplit(url).netloc:
            challenges = parse_challenges(*(answer.headers.getRawHeaders("www-authenticate") or []))
            value = await self._authorizer.answer(challenges, repository, credentials)
            if value and value != shown:
                self._requests.body(answer, "a refusal").close()
                answer = await self._requests.get(url, headers, value, method=method)
        if answer.status in (200, 206):
            return answer
        words = await self._requests.complaint(answer)
        match answer.status:
            case 401:
                raise AuthenticationRequired(words, challenge=credentials is None)
            case 403:
                raise Denied(words)
            case 404:
                raise absent(words)
            case 429:
                raise RateLimited(words)
        raise UpstreamFailed(words)
