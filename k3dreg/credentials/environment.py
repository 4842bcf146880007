"""Look up credentials in `DOCKER_AUTH_CONFIG`, which Docker's command line reads before `config.json` since 28.2.

The value is JSON, `{"auths": {HOST: {"auth": BASE64}}}` (docker/cli, `cli/config/configfile`).  Only `auths` counts.
Hosts that it does not name are looked up in `config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping

from k3dreg.credentials.docker_config import BadConfig, DockerConfig
from k3dreg.formats.basic_auth import Credentials
from k3dreg.reporting.logger import make_logger

log = make_logger()

VARIABLE = "DOCKER_AUTH_CONFIG"


class EnvironmentConfig:
    """The credentials in the environment variable, which is parsed once.

    A value that cannot be used is logged once, without its content, and otherwise ignored, as Docker does.
    """

    name = VARIABLE

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._config = DockerConfig()
        value = environment.get(VARIABLE)
        if value:
            try:
                self._config = DockerConfig.parse(value.encode("utf-8", "surrogateescape"))
            except BadConfig as error:
                log.warn("the environment variable {name} is ignored: {reason}", name=VARIABLE, reason=error)

    async def credentials(self, registry: str) -> Credentials | None:
        """Return the variable's credentials for the host, None for none."""
        return self._config.auth_for(registry)

    def refused(self, registry: str) -> None:
        """Do nothing: the variable does not change while k3dreg runs."""
