"""The setting of the registries whose images are served, with the credentials for them."""

from __future__ import annotations

from attrs import frozen

from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci.reference import DOCKER_HUB


@frozen
class Remote:
    """The registries whose images are served: the host `only` ("docker.io" for Docker Hub), or all of them if None."""

    only: str | None = None
    login: Credentials | None = None

    @property
    def login_for(self) -> str:
        """The host that `login` is for: `only`, else Docker Hub, which allows more pulls to users that log in."""
        return self.only or DOCKER_HUB
