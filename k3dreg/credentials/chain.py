"""The places that k3dreg searches for credentials, in their order."""

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
    """A place where credentials may be.  It logs its errors, and returns None then.  `name` is for logs."""

    name: str

    async def credentials(self, registry: str) -> Credentials | None: ...

    def refused(self, registry: str) -> None: ...


class CredentialChain:
    """Several places for credentials, of which the first that has some for a registry counts (`ICredentialSource`).

    Credentials that a client sends with its request come before all of them; `registry` takes care of that.
    """

    def __init__(self, finders: Sequence[Finder]) -> None:
        self._finders = finders

    async def credentials(self, registry: str) -> Credentials | None:
        """Return the credentials of the first place that has some, else None.

        Cancelling ends the search and kills a helper that runs.
        """
        for finder in self._finders:
            found = await finder.credentials(registry)
            if found is not None:
                log.debug("credentials for {registry} come from {name}", registry=registry, name=finder.name)
                return found
        return None

    async def registry_auth(self, registry: str) -> str:
        """Return the credentials as the value of `X-Registry-Auth`, "" for none."""
        found = await self.credentials(registry)
        return "" if found is None else registry_auth(found, registry)

    def refused(self, registry: str) -> None:
        """Forget the remembered credentials for a registry that has refused them.

        Then a user who corrects a role, a profile or a login need not wait until the old credentials expire.
        """
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
    """Return the chain of a daemon: the settings' credentials (`remote`), AWS's, and those of Docker's client.

    `reactor` runs helpers and tells the time.  `environment` is that of this process.  `workers` read files.  The
    threads of `aws` (default: `workers`) wait for AWS.
    """
    given = [] if remote is None or remote.login is None else [GivenCredentials(remote.login_for, remote.login)]
    # AWS's helper has its own runner, so that Docker's helpers need not wait for those that wait for a silent AWS.
    ecr_helpers = HelperRunner(reactor, workers, environment)
    ecr = EcrCredentials(fetch_token, ecr_helpers, workers if aws is None else aws, reactor)
    return CredentialChain(
        [*given, ecr, *_docker_logins(workers, environment, HelperRunner(reactor, workers, environment))]
    )


def make_docker_logins(reactor: Any, workers: Workers, environment: Mapping[str, str]) -> CredentialChain:
    """Return a chain of the places where Docker's command line looks, in its order."""
    return CredentialChain(_docker_logins(workers, environment, HelperRunner(reactor, workers, environment)))


def _docker_logins(workers: Workers, environment: Mapping[str, str], helpers: HelperRunner) -> list[Finder]:
    return [EnvironmentConfig(environment), ConfigFile(config_path(environment), workers, helpers)]
