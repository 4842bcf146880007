"""Get credentials for the registries of AWS, without a setting."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen
from cachetools import TLRUCache
from twisted.internet.interfaces import IReactorTime

from k3dreg.credentials.ecr_hosts import EcrHost
from k3dreg.credentials.ecr_tokens import EcrToken, TokenFailed
from k3dreg.credentials.helpers import HelperFailed, HelperRunner
from k3dreg.formats.basic_auth import Credentials
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.single_flight import SingleFlight
from k3dreg.streaming.workers import Workers

log = make_logger()

_HELPER = "ecr-login"
# Without this variable the helper caches tokens in a file; k3dreg keeps them in memory only.
_HELPER_ENVIRONMENT = {"AWS_ECR_DISABLE_CACHE": "true"}
# Seconds for which a helper's token counts as valid.  The helper does not tell when it expires; AWS says after 12 hours
# (ECR User Guide, "Private registry authentication").  A short time costs one call of the helper an hour, and limits
# how long a token is used that has become invalid for another reason.
_HELPER_TOKEN_AGE = 4500.0
# Seconds before its end from which a token is not used for a new pull: the engine sends it for every layer, and a pull
# may take long.
_MARGIN = 900.0
# Seconds for which a failure is remembered.  Without AWS, the search for an instance's role takes two seconds, and a
# node that is refused asks again at once.
_FAILED_FOR = 30.0
# Endpoints that are remembered.  AWS has some forty regions (botocore, `endpoints.json`), but any client can ask for
# hosts in regions that do not exist.
_ENDPOINTS_REMEMBERED = 200
# Endpoints for which k3dreg gets tokens at once.
_MOST_ASKED = 16


@frozen
class _Held:
    """The credentials for an endpoint, None after a failure, until a time in seconds since the epoch."""

    credentials: Credentials | None
    until: float


class EcrCredentials:
    """Tokens from `docker-credential-ecr-login` if it is installed, else, or if it has none, from AWS's API.

    A token is valid for every account of its endpoint, and is kept in memory until shortly before it expires.  When
    neither source has a token, the log says why and the pull goes on without one.
    """

    name = "AWS ECR"

    def __init__(
        self,
        fetch: Callable[[EcrHost], EcrToken],
        helpers: HelperRunner,
        workers: Workers,
        clock: IReactorTime,
    ) -> None:
        """`fetch` blocks, and raises `TokenFailed`: see `fetch_token`.  `clock` tells seconds since the epoch.

        `workers` should do nothing else, because `fetch` takes half a minute when AWS is silent.
        """
        self._fetch = fetch
        self._helpers = helpers
        self._workers = workers
        self._clock = clock
        self._held: TLRUCache[EcrHost, _Held] = TLRUCache(
            _ENDPOINTS_REMEMBERED, lambda endpoint, held, now: held.until, clock.seconds
        )
        self._flights: SingleFlight[EcrHost, Credentials | None] = SingleFlight()

    async def credentials(self, registry: str) -> Credentials | None:
        """Return a token for a host of AWS; None for any other host, and after a failure.

        Also returns None while tokens for `_MOST_ASKED` other endpoints are being fetched.  Cancelling does not stop
        the fetching: the next caller gets its result.
        """
        host = EcrHost.parse(registry)
        if host is None:
            return None
        endpoint = host.endpoint
        held = self._held.get(endpoint)
        if held is not None:
            return held.credentials
        if len(self._flights) >= _MOST_ASKED and endpoint not in self._flights:
            log.warn(
                "no credentials for {registry} from AWS: k3dreg is already asking AWS for those of {count} other hosts",
                registry=registry,
                count=_MOST_ASKED,
            )
            return None
        return await self._flights.join(endpoint, lambda: self._ask(endpoint, registry))

    def refused(self, registry: str) -> None:
        """Forget the token for a registry that has refused it: the next one may be of another account or role.

        A failure to get a token stays remembered for its time.
        """
        host = EcrHost.parse(registry)
        held = None if host is None else self._held.get(host.endpoint)
        if host is not None and held is not None and held.credentials is not None:
            del self._held[host.endpoint]

    async def _ask(self, endpoint: EcrHost, registry: str) -> Credentials | None:
        """Ask the helper and then the API, remember the result for the endpoint, and return it."""
        troubles: list[str] = []
        found: EcrToken | None = None
        for ask in (self._from_helper, self._from_api):
            try:
                found = await ask(endpoint, registry)
            except (HelperFailed, TokenFailed) as error:
                troubles.append(str(error))
            if found is not None:
                break
        if found is None:
            held = _Held(None, self._clock.seconds() + _FAILED_FOR)
            log.warn(
                "no credentials for {registry} from AWS: {trouble}",
                registry=registry,
                trouble="; ".join(troubles),
            )
        else:
            held = _Held(found.credentials, found.expires - _MARGIN)
        self._held[endpoint] = held
        return held.credentials

    async def _from_helper(self, endpoint: EcrHost, registry: str) -> EcrToken | None:
        """Return the helper's token; None if it is not installed.  Raises `HelperFailed`.

        A helper that does not know the form of a newer host's name answers that it has no credentials.
        """
        if not await self._helpers.is_installed(_HELPER):
            return None
        credentials = await self._helpers.get(_HELPER, registry, _HELPER_ENVIRONMENT)
        if credentials is None:
            raise HelperFailed(f"docker-credential-{_HELPER} has no token; its log is in ~/.ecr")
        return EcrToken(credentials, self._clock.seconds() + _HELPER_TOKEN_AGE)

    async def _from_api(self, endpoint: EcrHost, registry: str) -> EcrToken | None:
        """Return AWS's token.  Raises `TokenFailed`."""
        return await self._workers.run(self._fetch, endpoint)
