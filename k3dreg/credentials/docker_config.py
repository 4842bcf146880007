"""Docker's `config.json`, as far as it is about credentials.  Pure: bytes in, values out.

The format is that of Docker's command line (docker/cli, `cli/config/configfile` and `types.AuthConfig`).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci.reference import DOCKER_HUB

# What `docker login` without a host writes, and what it asks helpers for.
HUB_KEY = "https://index.docker.io/v1/"
_HUB_HOSTS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
# Paths that mean the registry as a whole.  A browser login to Docker Hub keeps tokens for the Hub's own API beside
# them (`https://index.docker.io/v1/access-token`), which are no use to a registry.
_WHOLE = frozenset({"", "/", "/v1", "/v1/", "/v2", "/v2/"})


class BadConfig(Exception):
    """A `config.json` that cannot be used at all; the text says why and holds nothing of its content."""


@frozen
class DockerConfig:
    """`auths` by registry host; `helpers` are names of credential helpers by host, `store` the one for all others."""

    auths: Mapping[str, Credentials] = field(factory=dict)
    helpers: Mapping[str, str] = field(factory=dict)
    store: str = ""

    @classmethod
    def parse(cls, data: bytes) -> DockerConfig:
        """Raises `BadConfig`.  An entry that makes no sense is left out: the others still count."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise BadConfig("it is not JSON") from None  # the error would quote the text
        if not isinstance(value, dict):
            raise BadConfig("it is not a JSON object")
        auths: dict[str, tuple[bool, Credentials]] = {}
        for key, entry in _object(value, "auths").items():
            host, whole = host_of(key)
            credentials = _entry(entry)
            if credentials is None or (host == DOCKER_HUB and not whole):
                continue
            if whole or host not in auths or not auths[host][0]:
                auths[host] = (whole, credentials)
        helpers = {
            host_of(key)[0]: name
            for key, name in _object(value, "credHelpers").items()
            if isinstance(name, str) and name
        }
        store = value.get("credsStore")
        return cls(
            {host: credentials for host, (_, credentials) in auths.items()},
            helpers,
            store if isinstance(store, str) else "",
        )

    def helper_for(self, registry: str) -> str:
        """The helper that holds the credentials for the host, "" for none."""
        return self.helpers.get(host_of(registry)[0], self.store)

    def auth_for(self, registry: str) -> Credentials | None:
        """What is written in the file itself for the host."""
        return self.auths.get(host_of(registry)[0])


def host_of(key: str) -> tuple[str, bool]:
    """The registry host that a key names, and whether it means all of that host.

    Keys are hosts with or without scheme and path; all spellings of Docker Hub are `docker.io`.
    """
    rest = key.strip().partition("://")[2] or key.strip()
    host, slash, path = rest.partition("/")
    host = host.lower()
    return (DOCKER_HUB if host in _HUB_HOSTS else host), (slash + path) in _WHOLE


def helper_key(registry: str) -> str:
    """How Docker's command line asks a helper for a registry."""
    return HUB_KEY if host_of(registry)[0] == DOCKER_HUB else registry


def _object(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    member = value.get(key)
    return member if isinstance(member, dict) else {}


def _entry(entry: object) -> Credentials | None:
    if not isinstance(entry, dict):
        return None

    def text(key: str) -> str:
        member = entry.get(key)
        return member if isinstance(member, str) else ""

    if text("identitytoken"):
        return Credentials(identity_token=text("identitytoken"))
    if text("registrytoken"):
        return Credentials(registry_token=text("registrytoken"))
    username, password = text("username"), text("password")
    if text("auth"):
        try:
            decoded = base64.b64decode(text("auth"), validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            return None
        username, _, password = decoded.partition(":")
    # Old versions of Docker padded the password with zero bytes.
    credentials = Credentials.login(username, password.strip("\0"))
    return None if credentials.is_empty else credentials
