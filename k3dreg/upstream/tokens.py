"""Authenticate to a registry: with Basic, or with a token from its token server.

The tokens follow the "Token Authentication Specification" and "OAuth2 Token Authentication"
(distribution/distribution, docs/content/spec/auth).  Docker Hub, GHCR and most other registries use them.
"""

from __future__ import annotations

import json
from urllib.parse import urlencode, urlsplit

from attrs import frozen
from cachetools import LRUCache, TLRUCache
from twisted.internet.interfaces import IReactorTime

from k3dreg.formats.basic_auth import Credentials
from k3dreg.formats.challenge import Challenge
from k3dreg.oci.errors import AuthenticationRequired, RateLimited, UpstreamFailed
from k3dreg.oci.reference import Repository
from k3dreg.upstream.registry_requests import Requests, check_is_elsewhere, is_loopback

# Seconds for which a token is valid if its server does not say (Token Authentication Specification, `expires_in`).
_LIFETIME = 60.0
# Seconds before a token's end from which it is not used any more, because a request takes some time to arrive.
_MARGIN = 10.0
# Bytes of a token server's answer.  Tokens have some KiB.
_LARGEST_ANSWER = 256 * 1024
# Challenges, and tokens, that are remembered.
_REMEMBERED = 500
_CLIENT_ID = "k3dreg"


@frozen
class _Asked:
    """What a token is for.  Its `repr` contains no secret, because that of `Credentials` contains none."""

    realm: str
    service: str
    scope: str
    credentials: Credentials | None


@frozen
class _Token:
    value: str
    expires: float


class Authorizer:
    """Turns a challenge and credentials into the value of an `Authorization` header.

    It remembers challenges and tokens in memory, by repository and credentials, so that a blob takes one request.
    """

    def __init__(self, requests: Requests, clock: IReactorTime) -> None:
        self._requests = requests
        self._clock = clock
        self._challenges: LRUCache[tuple[Repository, Credentials | None], Challenge] = LRUCache(_REMEMBERED)
        self._tokens: TLRUCache[_Asked, _Token] = TLRUCache(
            _REMEMBERED, lambda asked, token, now: token.expires, clock.seconds
        )

    async def known(self, repository: Repository, credentials: Credentials | None) -> str:
        """Return the header's value for the last challenge of this repository to these credentials; "" for none.

        Raises as `answer`, because a new token may be needed.
        """
        challenge = self._challenges.get((repository, credentials))
        return "" if challenge is None else await self._answer(challenge, repository, credentials)

    async def answer(self, challenges: list[Challenge], repository: Repository, credentials: Credentials | None) -> str:
        """Return the header's value after a 401 with these challenges; "" if none of them can be answered.

        Raises `AuthenticationRequired` when the token server requires credentials, or other ones, and `UpstreamFailed`.
        """
        usable = [c for c in challenges if c.scheme == "bearer" or (c.scheme == "basic" and credentials is not None)]
        for challenge in usable:
            value = await self._answer(challenge, repository, credentials, fresh=True)
            if value:
                self._challenges[repository, credentials] = challenge
                return value
        return ""

    async def _answer(
        self, challenge: Challenge, repository: Repository, credentials: Credentials | None, *, fresh: bool = False
    ) -> str:
        if challenge.scheme == "basic":
            return "" if credentials is None else credentials.to_header()
        if credentials is not None and credentials.registry_token:
            return f"Bearer {credentials.registry_token}"
        asked = _Asked(
            challenge.parameters.get("realm", ""),
            challenge.parameters.get("service", ""),
            challenge.parameters.get("scope", "") or f"repository:{repository.path}:pull",
            credentials,
        )
        if fresh:
            self._tokens.pop(asked, None)
        held = self._tokens.get(asked)
        if held is None:
            check_is_elsewhere(urlsplit(asked.realm).netloc.rpartition("@")[2], str(repository.registry))
            held = await self._fetch(asked)
            self._tokens[asked] = held
        return f"Bearer {held.value}"

    async def _fetch(self, asked: _Asked) -> _Token:
        realm = urlsplit(asked.realm)
        if realm.scheme != "https" and not (realm.scheme == "http" and is_loopback(realm.netloc)):
            raise UpstreamFailed("the registry's token server does not use TLS")
        about = {"service": asked.service} if asked.service else {}
        about["scope"] = asked.scope
        credentials = asked.credentials
        if credentials is not None and credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "client_id": _CLIENT_ID,
                "refresh_token": credentials.identity_token,
            }
            answer = await self._requests.post(asked.realm, form | about)
        else:
            authorization = ""
            if credentials is not None and credentials.username:
                authorization = credentials.to_header()
                about["account"] = credentials.username
            joint = "&" if realm.query else "?"
            answer = await self._requests.get(f"{asked.realm}{joint}{urlencode(about)}", {}, authorization)
        if answer.status != 200:
            words = await self._requests.complaint(answer)
            if answer.status in (400, 401, 403):
                raise AuthenticationRequired(words, challenge=credentials is None)
            raise RateLimited(words) if answer.status == 429 else UpstreamFailed(words)
        return self._token(await self._requests.read(answer, _LARGEST_ANSWER), answer.host)

    def _token(self, body: bytes, host: str) -> _Token:
        try:
            value = json.loads(body)
            token = value.get("token") or value.get("access_token")
            lifetime = value.get("expires_in")
        except (ValueError, AttributeError, RecursionError):
            token = lifetime = None
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
            raise UpstreamFailed(f"{host} answered without a token")
        if not isinstance(lifetime, int | float) or lifetime <= 0:
            lifetime = _LIFETIME
        return _Token(token, self._clock.seconds() + lifetime - _MARGIN)
