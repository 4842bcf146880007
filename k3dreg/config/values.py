"""Parsers of settings: each turns what was given into the value that it means.

They raise `usage.UsageError`, which says what is wrong and what to do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.python import usage

from k3dreg.config.docker_context import locate_engine
from k3dreg.config.engine_address import EngineAddress
from k3dreg.config.password_file import read_password_file
from k3dreg.config.setting import Given
from k3dreg.oci.errors import InvalidName, UsageError
from k3dreg.oci.reference import Repository, registry_host

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
# A host with an optional port, with `*` for any text and `?` for any character.
_REGISTRIES = re.compile(r"[A-Za-z0-9.:*?\[\]_-]{1,255}")
# Below this a single image would not fit and every pull would export again.
_SMALLEST_CACHE = 64 * 1024 * 1024


def parse_size(text: str) -> int:
    """Bytes from `500MB`, `20G`, `1.5GiB`, `1048576`.  Raises `usage.UsageError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise usage.UsageError(f"not a size: {text!r} (a number with k, M, G or T, such as 20GB)")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()])


def parse_text(given: Given) -> str:
    """Return the text as it is."""
    return given.text


def parse_cache_size(given: Given) -> int:
    """Return bytes."""
    size = parse_size(given.text)
    if size < _SMALLEST_CACHE:
        raise usage.UsageError(f"--cache-size must be at least {_SMALLEST_CACHE >> 20}MiB")
    return size


def choice_of(*choices: str) -> Callable[[Given], str]:
    """Return a parser that takes one of `choices`, which are in lower case."""

    def parse(given: Given) -> str:
        if given.text.lower() not in choices:
            raise usage.UsageError(f"--{given.name} {given.text!r} is not one of {', '.join(choices)}")
        return given.text.lower()

    return parse


def parse_listen(given: Given) -> tuple[str, ...]:
    """Return endpoint strings: what was given, else `REGISTRY_HTTP_ADDR`, else the service manager's sockets."""
    endpoints = given.values
    if not endpoints:
        address = given.environment.get("REGISTRY_HTTP_ADDR", "")
        tls = [given.environment.get(f"REGISTRY_HTTP_TLS_{name}", "") for name in ("CERTIFICATE", "KEY")]
        # The service manager's sockets are for plain HTTP.
        inherited = () if address or any(tls) else given.sockets
        endpoints = inherited or (endpoint_of_address(address or ":5000", *tls),)
    return tuple(map(check_endpoint, endpoints))


def endpoint_of_address(address: str, certificate: str = "", key: str = "") -> str:
    """The Twisted endpoint string for a `REGISTRY_HTTP_ADDR`: `:5000`, `0.0.0.0:5000`, `localhost:5000`, `[::]:5000`.

    `certificate` and `key` are files (`REGISTRY_HTTP_TLS_CERTIFICATE` and `_KEY`), "" for plain HTTP.  As the official
    registry image has it, those of the authorities between follow in the file of the certificate.
    Raises `usage.UsageError`.
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
        return 0  # told of where the endpoint is looked at


def check_endpoint(description: str) -> str:
    """The endpoint string, when Twisted understands it.  Reads the certificate that it names, if it does.

    Raises `usage.UsageError`.
    """
    such_as = "ssl:5443:privateKey=KEY.pem:certKey=CERT.pem" if description.startswith("ssl:") else "tcp:5000"
    try:
        # Parsing needs no reactor, listening does.
        serverFromString(None, description)
    except LookupError as error:  # the only kind whose parsing depends on more than the words
        raise usage.UsageError(
            f"--listen {description!r}: the service manager gave this process no such socket"
        ) from error
    except Exception as error:  # each kind of endpoint has its own ways to refuse
        raise usage.UsageError(f"--listen {description!r} is not an endpoint such as {such_as}: {error}") from error
    return description


def parse_docker(given: Given) -> EngineAddress:
    """Return where the engine is; where nothing was given, the engine that Docker's own settings mean."""
    try:
        return locate_engine(given.text, given.environment)
    except UsageError as error:
        raise usage.UsageError(f"--docker: {error}") from error


def parse_aliases(given: Given) -> tuple[str, ...]:
    """Return names of this registry."""
    try:
        return tuple(dict.fromkeys(registry_host(name) for name in given.values))
    except InvalidName as error:
        raise usage.UsageError(f"--alias: {error}, such as registry.localhost:5000") from error


def parse_patterns(given: Given) -> tuple[str, ...]:
    """Return patterns of names of images."""
    for pattern in given.values:
        if not pattern or any(character.isspace() for character in pattern):
            raise usage.UsageError(f"--warm {pattern!r} is not a pattern of names of images, such as my-app:*")
    return tuple(dict.fromkeys(given.values))


def parse_registries(given: Given) -> tuple[str, ...]:
    """Return patterns of registries' hosts."""
    for pattern in given.values:
        if not _REGISTRIES.fullmatch(pattern):
            raise usage.UsageError(
                f"--allow-registry {pattern!r} is neither a registry, such as ghcr.io or localhost:5001, "
                "nor a pattern, such as *.example.com"
            )
    return tuple(dict.fromkeys(map(_as_asked_for, given.values)))


def _as_asked_for(pattern: str) -> str:
    """A registry as the names of images have it: Docker Hub has several spellings."""
    try:
        return str(Repository.parse("x", pattern).registry).lower()
    except InvalidName:
        return pattern.lower()


def parse_switch(given: Given) -> bool:
    """Return whether it is `on`, not `off`."""
    if given.text not in ("on", "off"):
        raise usage.UsageError(f"--{given.name} is either on or off, not {given.text!r}")
    return given.text == "on"


def parse_htpasswd(given: Given) -> Path | None:
    """Return a password file that can be used; None for none.  Reads it.

    With `REGISTRY_AUTH` of the official registry image there must be one: what that image would protect is not left
    open here.
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

    `REGISTRY_PROXY_REMOTEURL` is what k3d makes of a registry's `proxy`.  An error shows no secret.
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
    # Nobody says the usual port in the name of an image.
    host = authority.lower().removesuffix(":80" if scheme.lower() == "http" else ":443")
    try:
        registry = Repository.parse("x", host).registry
    except InvalidName:
        registry = None
    # With a path there, every image's name would be another than the one that a node asks for.
    if registry is None or scheme.lower() not in ("", "https", "http") or path not in ("", "v2", "v2/"):
        raise usage.UsageError(f"--proxy-remote-url {url!r} is neither a registry's, such as https://ghcr.io, nor *")
    return registry


def parse_deleting(given: Given) -> bool:
    """Return whether clients may delete, as k3d and ctlptl say it to the official registry image."""
    text = given.text.strip().lower()
    if text not in ("", "true", "false", "1", "0", "t", "f"):
        raise usage.UsageError(f"{given.name}={given.text!r} is neither true nor false")
    return text not in ("false", "0", "f")


def parse_state_dir(given: Given) -> Path:
    """Return the directory that was given, or `default_state_dir`."""
    return Path(given.text or default_state_dir(given.environment))


def default_state_dir(environment: Mapping[str, str]) -> str:
    """Return where state is kept when nothing was given.

    Where the service manager says (systemd.exec(5), StateDirectory=); the system's place for root, and for others who
    may write there, as in a container; the user's own else.
    """
    if told := environment.get("STATE_DIRECTORY", "").partition(":")[0]:
        return told
    system = "/var/lib/k3dreg"
    if os.geteuid() == 0 or os.access(system, os.W_OK):
        return system
    base = environment.get("XDG_STATE_HOME") or os.path.join(environment.get("HOME", "."), ".local", "state")
    return os.path.join(base, "k3dreg")
