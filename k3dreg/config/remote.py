"""Which registries' images are given, and the credentials that come with that."""

from __future__ import annotations

from attrs import frozen

from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci.reference import DOCKER_HUB


@frozen
class Remote:
    """`only` is the one registry's host, "docker.io" for Docker Hub; None for every registry."""

    only: str | None = None
    login: Credentials | None = None

    @property
    def login_for(self) -> str:
        """The host that `login` is for: with every registry, Docker Hub, which counts pulls by who pulls."""
        return self.only or DOCKER_HUB
