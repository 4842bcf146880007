"""Credentials for the registries of AWS, with nothing to switch on."""

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
# The helper keeps tokens in a file of its own otherwise; here they are kept in memory, and nowhere else.
_HELPER_ENVIRONMENT = {"AWS_ECR_DISABLE_CACHE": "true"}
# Seconds.  The helper does not say when its token expires; AWS says 12 hours after it was made (ECR User Guide,
# "Private registry authentication").  An hour and a quarter, less the margin, costs one call more and is safe from
# whatever else ends it.
_HELPER_TOKEN_AGE = 4500.0
# Seconds before its end from which a token is not begun with: the engine shows it at every layer of a long pull.
_MARGIN = 900.0
# Seconds in which a failure is not tried again.  Where there is no AWS at all, the search for an instance's role takes
# two seconds, and a node that is refused comes back at once.
_FAILED_FOR = 30.0
# Any client can name hosts, in regions that do not exist, too.  AWS has some forty (botocore, `endpoints.json`).
_ENDPOINTS_REMEMBERED = 200
# Endpoints that are asked at once.
_MOST_ASKED = 16


@frozen
class _Held:
    """What is known for an endpoint until some time; None: there is nothing to be had."""

    credentials: Credentials | None
    until: float


class EcrCredentials:
    """Get tokens from `docker-credential-ecr-login` where it is installed, and from AWS's API when it has none.

    A token serves every account of its endpoint, and is kept in memory until shortly before it expires.  When neither
    source has a token, the log says why and the pull goes on without.
    """

    name = "AWS ECR"

    def __init__(
        self,
        fetch: Callable[[EcrHost], EcrToken],
        helpers: HelperRunner,
        workers: Workers,
        clock: IReactorTime,
    ) -> None:
        """`fetch` blocks, and raises `TokenFailed`.  `clock` tells seconds since the epoch.

        `workers` do nothing else: where AWS is silent, `fetch` takes half a minute.
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
        """For a host of AWS; None for every other.  Cancelling leaves the asking running for the next who asks.

        Also None while `_MOST_ASKED` other endpoints are being asked.
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
                "no credentials for {registry} from AWS, so Docker pulls without: k3dreg is asking AWS "
                "for {count} others",
                registry=registry,
                count=_MOST_ASKED,
            )
            return None
        return await self._flights.join(endpoint, lambda: self._ask(endpoint, registry))

    def refused(self, registry: str) -> None:
        """A token that the registry does not take is not shown again: the next may be another account's or role's.

        A failure to get one is still remembered for its time.
        """
        host = EcrHost.parse(registry)
        held = None if host is None else self._held.get(host.endpoint)
        if host is not None and held is not None and held.credentials is not None:
            del self._held[host.endpoint]

    async def _ask(self, endpoint: EcrHost, registry: str) -> Credentials | None:
        """Ask one source after the other until one has a token."""
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
                "no credentials for {registry} from AWS, so Docker pulls without: {trouble}",
                registry=registry,
                trouble="; ".join(troubles),
            )
        else:
            held = _Held(found.credentials, found.expires - _MARGIN)
        self._held[endpoint] = held
        return held.credentials

    async def _from_helper(self, endpoint: EcrHost, registry: str) -> EcrToken | None:
        """Return the helper's token; None if it is not installed.  Raises `HelperFailed`.

        A helper that is older than a host's name has nothing for that host, and says no more than that.
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
