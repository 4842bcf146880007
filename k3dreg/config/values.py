"""Parsers of settings, which turn the given text into the setting's value.

They raise `usage.UsageError`, which says what is wrong and what to do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.python import usage

from k3dreg.config import refresh_rule
from k3dreg.config.docker_context import locate_engine
from k3dreg.config.engine_address import EngineAddress
from k3dreg.config.password_file import read_password_file
from k3dreg.config.refresh_rule import RefreshRule
from k3dreg.config.retention import RetainRule, parse_rule
from k3dreg.config.setting import Given
from k3dreg.oci.errors import InvalidName, UsageError
from k3dreg.oci.reference import Repository, registry_host

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
# A host with an optional port, in which `*` matches any text and `?` any character.
_REGISTRIES = re.compile(r"[A-Za-z0-9.:*?\[\]_-]{1,255}")
_CLUSTERS = re.compile(r"[A-Za-z0-9.*?\[\]_-]{1,255}")
# Bytes.  A smaller cache could not keep a single image, so k3dreg would export the image again at every pull.
_SMALLEST_CACHE = 64 * 1024 * 1024


def parse_size(text: str) -> int:
    """Return the bytes in a size such as `500MB`, `20G`, `1.5GiB` or `1048576`.  Raises `usage.UsageError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise usage.UsageError(f"not a size: {text!r} (a number with k, M, G or T, such as 20GB)")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()])


def parse_text(given: Given) -> str:
    """Return the text unchanged."""
    return given.text


def parse_cache_size(given: Given) -> int:
    """Return the size of the cache in bytes."""
    size = parse_size(given.text)
    if size < _SMALLEST_CACHE:
        raise usage.UsageError(f"--cache-size must be at least {_SMALLEST_CACHE >> 20}MiB")
    return size


def choice_of(*choices: str) -> Callable[[Given], str]:
    """Return a parser that accepts one of `choices`, which are in lower case, in any case."""

    def parse(given: Given) -> str:
        if given.text.lower() not in choices:
            raise usage.UsageError(f"--{given.name} {given.text!r} is not one of {', '.join(choices)}")
        return given.text.lower()

    return parse


def parse_listen(given: Given) -> tuple[str, ...]:
    """Return endpoint strings: those given, else of `REGISTRY_HTTP_ADDR`, the service manager's sockets or `:5000`."""
    endpoints = given.values
    if not endpoints:
        address = given.environment.get("REGISTRY_HTTP_ADDR", "")
        tls = [given.environment.get(f"REGISTRY_HTTP_TLS_{name}", "") for name in ("CERTIFICATE", "KEY")]
        # With certificates the service manager's sockets are not used, because k3dreg serves plain HTTP on them.
        inherited = () if address or any(tls) else given.sockets
        endpoints = inherited or (endpoint_of_address(address or ":5000", *tls),)
    return tuple(map(check_endpoint, endpoints))


def endpoint_of_address(address: str, certificate: str = "", key: str = "") -> str:
    """Return the Twisted endpoint string for a `REGISTRY_HTTP_ADDR`: `:5000`, `0.0.0.0:5000`, `localhost:5000`.

    An IPv6 address is in brackets: `[::]:5000`.  `certificate` and `key` are files (`REGISTRY_HTTP_TLS_CERTIFICATE` and
    `_KEY`), "" for plain HTTP.  As for the official registry image, intermediate certificates follow in the file of the
    certificate, which is read.  Raises `usage.UsageError`.
    """
    host, colon, port = address.strip().rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise usage.UsageError(f"REGISTRY_HTTP_ADDR={address!r} is not HOST:PORT")
    in_brackets = host.startswith("[") and host.endswith("]")
    if ":" in host and not in_brackets:
        raise usage.UsageError(f"REGISTRY_HTTP_ADDR={address!r}: an IPv6 address is written in brackets")
    interface = f":interface={quoteStringArgument(host.strip('[]'))}" if host else ""
    if not certificate and not key:
        return f"{'tcp6' if in_brackets else 'tcp'}:{port}{interface}"
    if not certificate or not key:
        raise usage.UsageError("REGISTRY_HTTP_TLS_CERTIFICATE and REGISTRY_HTTP_TLS_KEY: set both or neither")
    files = f":privateKey={quoteStringArgument(key)}:certKey={quoteStringArgument(certificate)}"
    if _certificates_in(certificate) > 1:
        files += f":extraCertChain={quoteStringArgument(certificate)}"
    return f"ssl:{port}{interface}{files}"


def _certificates_in(path: str) -> int:
    try:
        return Path(path).read_bytes().count(b"-----BEGIN CERTIFICATE-----")
    except OSError:
        return 0  # `check_endpoint` reports the error


def check_endpoint(description: str) -> str:
    """Return the endpoint string if Twisted can parse it, which reads the files of certificates that it names.

    Raises `usage.UsageError` if not.
    """
    such_as = "ssl:5443:privateKey=KEY.pem:certKey=CERT.pem" if description.startswith("ssl:") else "tcp:5000"
    try:
        # Parsing needs no reactor.
        serverFromString(None, description)
    except LookupError as error:  # `systemd:` looks the socket up when it is parsed
        raise usage.UsageError(
            f"--listen {description!r}: the service manager gave this process no such socket"
        ) from error
    except Exception as error:  # each kind of endpoint raises other exceptions
        raise usage.UsageError(f"--listen {description!r} is not an endpoint such as {such_as}: {error}") from error
    return description


def parse_docker(given: Given) -> EngineAddress:
    """Return the engine's address, from Docker's own settings if none was given.  Reads files."""
    try:
        return locate_engine(given.text, given.environment)
    except UsageError as error:
        raise usage.UsageError(f"--docker: {error}") from error


def parse_aliases(given: Given) -> tuple[str, ...]:
    """Return further names of this registry, without duplicates."""
    try:
        return tuple(dict.fromkeys(registry_host(name) for name in given.values))
    except InvalidName as error:
        raise usage.UsageError(f"--alias: {error}, such as registry.localhost:5000") from error


def parse_patterns(given: Given) -> tuple[str, ...]:
    """Return patterns of image names, without duplicates."""
    for pattern in given.values:
        if not pattern or any(character.isspace() for character in pattern):
            raise usage.UsageError(f"--warm {pattern!r} is not a pattern of names of images, such as my-app:*")
    return tuple(dict.fromkeys(given.values))


def parse_refresh(given: Given) -> tuple[RefreshRule, ...]:
    """Return rules for tags of other registries, in their order."""
    return tuple(map(refresh_rule.parse_rule, given.values))


def parse_retain(given: Given) -> tuple[RetainRule, ...]:
    """Return rules for pushed tags, in their order."""
    return tuple(map(parse_rule, given.values))


def parse_clusters(given: Given) -> tuple[str, ...]:
    """Return patterns of the names of clusters, without duplicates."""
    for pattern in given.values:
        if not _CLUSTERS.fullmatch(pattern):
            raise usage.UsageError(
                f"--attach {pattern!r} is not a pattern of names of clusters, such as dev or 'team-*'"
            )
    return tuple(dict.fromkeys(given.values))


def parse_registries(given: Given) -> tuple[str, ...]:
    """Return patterns of registry hosts, without duplicates."""
    for pattern in given.values:
        if not _REGISTRIES.fullmatch(pattern):
            raise usage.UsageError(
                f"--allow-registry {pattern!r} is neither a registry, such as ghcr.io or localhost:5001, "
                "nor a pattern, such as *.example.com"
            )
    return tuple(dict.fromkeys(map(_as_asked_for, given.values)))


def _as_asked_for(pattern: str) -> str:
    """Return a registry's host as parsed references have it, in which all spellings of Docker Hub are `docker.io`."""
    try:
        return str(Repository.parse("x", pattern).registry).lower()
    except InvalidName:
        return pattern.lower()


def parse_switch(given: Given) -> bool:
    """Return whether the setting is `on`."""
    if given.text not in ("on", "off"):
        raise usage.UsageError(f"--{given.name} is either on or off, not {given.text!r}")
    return given.text == "on"


def parse_htpasswd(given: Given) -> Path | None:
    """Return the path of the password file, after reading it to check that it can be used; None for no file.

    With `REGISTRY_AUTH` of the official registry image there must be a file.  Otherwise k3dreg would be open to all
    clients with settings that protect the official image.
    """
    path, scheme = given.text, given.environment.get("REGISTRY_AUTH", "")
    if scheme not in ("", "htpasswd"):
        raise usage.UsageError(f"REGISTRY_AUTH={scheme!r}: k3dreg supports htpasswd only")
    if not path:
        if scheme:
            raise usage.UsageError("REGISTRY_AUTH=htpasswd needs REGISTRY_AUTH_HTPASSWD_PATH")
        return None
    try:
        read_password_file(Path(path))
    except UsageError as error:
        raise usage.UsageError(f"--htpasswd {path}: {error}") from error
    return Path(path)


def parse_remote(given: Given) -> str | None:
    """Return the host of the one registry whose images are served, such as `https://ghcr.io`; None for `*`, all.

    k3d sets `REGISTRY_PROXY_REMOTEURL` from a registry's `proxy`.  No error contains the user or password of a URL.
    """
    url = given.text
    if url == "*":
        return None
    scheme, _, rest = url.rpartition("://")
    authority, _, path = rest.partition("/")
    if "@" in authority:
        raise usage.UsageError(
            "--proxy-remote-url contains a user: set REGISTRY_PROXY_USERNAME and REGISTRY_PROXY_PASSWORD instead"
        )
    # The names of images do not contain the default port.
    host = authority.lower().removesuffix(":80" if scheme.lower() == "http" else ":443")
    try:
        registry = Repository.parse("x", host).registry
    except InvalidName:
        registry = None
    # A path is refused: the names in that registry would differ from those that nodes ask for.
    if registry is None or scheme.lower() not in ("", "https", "http") or path not in ("", "v2", "v2/"):
        raise usage.UsageError(f"--proxy-remote-url {url!r} is neither a registry's, such as https://ghcr.io, nor *")
    return registry


def parse_boolean(given: Given) -> bool:
    """Return whether a variable of the official registry image, such as k3d and ctlptl set, is true."""
    text = given.text.strip().lower()
    if text not in ("", "true", "false", "1", "0", "t", "f"):
        raise usage.UsageError(f"{given.name}={given.text!r} is neither true nor false")
    return text not in ("false", "0", "f")


def parse_index_platforms(given: Given) -> bool:
    """Return whether an index needs all of its manifests, from the variable of the official registry image."""
    if given.text not in ("all", "none"):
        raise usage.UsageError(f"{given.name}={given.text!r}: k3dreg supports all and none")
    return given.text == "all"


def parse_state_dir(given: Given) -> Path:
    """Return the given directory, else `default_state_dir`."""
    return Path(given.text or default_state_dir(given.environment))


def default_state_dir(environment: Mapping[str, str]) -> str:
    """Return the default state directory.

    It is the service manager's (systemd.exec(5), StateDirectory=) if there is one.  Otherwise it is `/var/lib/k3dreg`
    for root, and for any user who may write there, as in a container.  For others it is below the user's own state
    directory.
    """
    if told := environment.get("STATE_DIRECTORY", "").partition(":")[0]:
        return told
    system = "/var/lib/k3dreg"
    if os.geteuid() == 0 or os.access(system, os.W_OK):
        return system
    base = environment.get("XDG_STATE_HOME") or os.path.join(environment.get("HOME", "."), ".local", "state")
    return os.path.join(base, "k3dreg")
