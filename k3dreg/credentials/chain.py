"""Who is asked for credentials, in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from k3dreg.config.remote import Remote
from k3dreg.credentials.docker_config_file import ConfigFile, config_path
from k3dreg.credentials.ecr import EcrCredentials
from k3dreg.credentials.ecr_tokens import fetch_token
from k3dreg.credentials.environment import EnvironmentConfig
from k3dreg.credentials.given import GivenCredentials
from k3dreg.credentials.helpers import HelperRunner
from k3dreg.formats.basic_auth import Credentials, registry_auth
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.workers import Workers

log = make_logger()


class Finder(Protocol):
    """One place where credentials may be.  It logs its own trouble and gives None then."""

    name: str

    async def credentials(self, registry: str) -> Credentials | None: ...

    def refused(self, registry: str) -> None: ...


class CredentialChain:
    """The first of several places that has credentials for a registry.

    What a client sent with its request comes before all of these and is the use case's to hand on.
    """

    def __init__(self, finders: Sequence[Finder]) -> None:
        self._finders = finders

    async def credentials(self, registry: str) -> Credentials | None:
        """From the first that has some; None if nobody has.  Cancelling ends the search, helpers included."""
        for finder in self._finders:
            found = await finder.credentials(registry)
            if found is not None:
                log.debug("credentials for {registry} come from {name}", registry=registry, name=finder.name)
                return found
        return None

    async def registry_auth(self, registry: str) -> str:
        """The same as the value of `X-Registry-Auth`, "" for none."""
        found = await self.credentials(registry)
        return "" if found is None else registry_auth(found, registry)

    def refused(self, registry: str) -> None:
        """So what is remembered does not keep somebody out who has mended it since: a role, a profile, a login."""
        for finder in self._finders:
            finder.refused(registry)


def make_chain(
    reactor: Any,
    workers: Workers,
    environment: Mapping[str, str],
    remote: Remote | None = None,
    *,
    aws: Workers | None = None,
) -> CredentialChain:
    """Those that k3dreg was started with (`remote`), AWS's ECR for its own hosts, then what Docker's client would use.

    `reactor` runs helpers and tells the time; `environment` is this process's.  `workers` read files; `aws` wait for
    AWS, and are `workers` when None.
    """
    given = [] if remote is None or remote.login is None else [GivenCredentials(remote.login_for, remote.login)]
    # A runner of its own: helpers that wait for a silent AWS leave Docker's their turns.
    ecr_helpers = HelperRunner(reactor, workers, environment)
    ecr = EcrCredentials(fetch_token, ecr_helpers, workers if aws is None else aws, reactor)
    return CredentialChain(
        [*given, ecr, *_docker_logins(workers, environment, HelperRunner(reactor, workers, environment))]
    )


def make_docker_logins(reactor: Any, workers: Workers, environment: Mapping[str, str]) -> CredentialChain:
    """Return the places where Docker's command line looks, in its order."""
    return CredentialChain(_docker_logins(workers, environment, HelperRunner(reactor, workers, environment)))


def _docker_logins(workers: Workers, environment: Mapping[str, str], helpers: HelperRunner) -> list[Finder]:
    return [EnvironmentConfig(environment), ConfigFile(config_path(environment), workers, helpers)]
