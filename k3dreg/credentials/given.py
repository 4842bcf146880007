"""The credentials in k3dreg's settings: `REGISTRY_PROXY_USERNAME` and `REGISTRY_PROXY_PASSWORD`."""

from __future__ import annotations

from attrs import frozen

from k3dreg.credentials.docker_config import host_of
from k3dreg.formats.basic_auth import Credentials


@frozen
class GivenCredentials:
    """The credentials for one registry, whose host is "docker.io" for Docker Hub."""

    registry: str
    login: Credentials

    name = "REGISTRY_PROXY_USERNAME"

    async def credentials(self, registry: str) -> Credentials | None:
        """Return the credentials if `registry` is the one that they are for, else None."""
        return self.login if host_of(registry)[0] == self.registry else None

    def refused(self, registry: str) -> None:
        """Do nothing: the settings do not change when a registry refuses them."""
