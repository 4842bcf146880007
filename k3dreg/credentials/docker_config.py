"""Parse the credentials in Docker's `config.json`.  No I/O.

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

# The key of Docker Hub: `docker login` without a host writes it, and asks helpers for it.
HUB_KEY = "https://index.docker.io/v1/"
_HUB_HOSTS = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
# Paths of keys that mean a whole registry.  A browser login to Docker Hub also stores tokens for the Hub's own API,
# under other paths (`https://index.docker.io/v1/access-token`).  A registry does not accept them.
_WHOLE = frozenset({"", "/", "/v1", "/v1/", "/v2", "/v2/"})


class BadConfig(Exception):
    """A `config.json` cannot be used at all.  The text says why and contains nothing of the file."""


@frozen
class DockerConfig:
    """The credentials, and names of credential helpers, in a `config.json`.

    `auths` are credentials by registry host.  `helpers` are names of helpers by host; `store` is the helper of all
    other hosts, "" for none.
    """

    auths: Mapping[str, Credentials] = field(factory=dict)
    helpers: Mapping[str, str] = field(factory=dict)
    store: str = ""

    @classmethod
    def parse(cls, data: bytes) -> DockerConfig:
        """Return the content of a file.  An entry that makes no sense is left out.  Raises `BadConfig`."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise BadConfig("it is not JSON") from None  # without the cause, which contains the file's text
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
        """Return the name of the helper that has the credentials for the host, "" for none."""
        return self.helpers.get(host_of(registry)[0], self.store)

    def auth_for(self, registry: str) -> Credentials | None:
        """Return the credentials that the file itself contains for the host, None for none."""
        return self.auths.get(host_of(registry)[0])


def host_of(key: str) -> tuple[str, bool]:
    """Return the registry host that a key names, and whether the key means the whole host.

    Keys are hosts with or without scheme and path.  The host of every spelling of Docker Hub is `docker.io`.
    """
    rest = key.strip().partition("://")[2] or key.strip()
    host, slash, path = rest.partition("/")
    host = host.lower()
    return (DOCKER_HUB if host in _HUB_HOSTS else host), (slash + path) in _WHOLE


def helper_key(registry: str) -> str:
    """Return the text by which Docker's command line asks a helper for a registry."""
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
