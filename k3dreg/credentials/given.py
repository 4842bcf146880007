"""Credentials that k3dreg was started with: `REGISTRY_PROXY_USERNAME` and `REGISTRY_PROXY_PASSWORD`."""

from __future__ import annotations

from attrs import frozen

from k3dreg.credentials.docker_config import host_of
from k3dreg.formats.basic_auth import Credentials


@frozen
class GivenCredentials:
    """For one registry, "docker.io" for Docker Hub."""

    registry: str
    login: Credentials

    name = "REGISTRY_PROXY_USERNAME"

    async def credentials(self, registry: str) -> Credentials | None:
        """Those for that registry, for no other."""
        return self.login if host_of(registry)[0] == self.registry else None

    def refused(self, registry: str) -> None:
        """They are what it was started with, and stay."""
