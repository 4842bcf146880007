"""Which engine is meant when nobody, or only Docker's own settings, say so.

As Docker's client looks for it (`cli/command/cli.go`, `resolveContextName`): `DOCKER_HOST`, then the context of
`DOCKER_CONTEXT`, then the current one of its `config.json`, then the default socket; and where that is not there, the
sockets of other installations.  Reads files: call it before the reactor runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from k3dreg.config.engine_address import EngineAddress, TlsMaterial, parse_engine_url
from k3dreg.oci.errors import UsageError

DEFAULT_SOCKET = "/var/run/docker.sock"


def locate_engine(url: str, environment: Mapping[str, str]) -> EngineAddress:
    """The engine at `url`, or that of Docker's settings when it is "".

    `DOCKER_TLS_VERIFY` and `DOCKER_CERT_PATH` hold for TCP, wherever the address comes from except a context, which has
    certificates of its own.  Raises `UsageError`.
    """
    directory = _docker_directory(environment)
    if url := url or environment.get("DOCKER_HOST", ""):
        return parse_engine_url(url, _tls_of_environment(environment, directory) if "://" in url else None)
    name = environment.get("DOCKER_CONTEXT") or _current_context(directory)
    if name and name != "default":
        return _address_of_context(name, directory)
    return EngineAddress(path=usual_socket(environment))


def usual_sockets(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Where engines put their sockets, the likeliest first."""
    home = environment.get("HOME", "")
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    colima = environment.get("COLIMA_HOME") or (f"{home}/.colima" if home else "")
    found = [DEFAULT_SOCKET]
    found += [f"{runtime}/docker.sock"] if runtime else []  # rootless Docker
    found += [f"{home}/.docker/run/docker.sock", f"{home}/.docker/desktop/docker.sock"] if home else []  # Desktop
    found += [f"{colima}/default/docker.sock"] if colima else []
    found += [f"{home}/.config/colima/default/docker.sock"] if home else []
    found += [f"{home}/.orbstack/run/docker.sock", f"{home}/.rd/docker.sock"] if home else []  # OrbStack, Rancher
    found += [f"{runtime}/podman/podman.sock"] if runtime else []
    return (*found, "/run/podman/podman.sock")


def usual_socket(environment: Mapping[str, str], usable: Callable[[str], bool] | None = None) -> str:
    """The first of `usual_sockets` that this process may use; the default one when there is none.

    `usable` tells whether a path is such a socket.
    """
    usable = usable or _is_usable
    return next((path for path in usual_sockets(environment) if usable(path)), DEFAULT_SOCKET)


def _is_usable(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode) and os.access(path, os.R_OK | os.W_OK)
    except OSError:
        return False


def _docker_directory(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("DOCKER_CONFIG") or Path(environment.get("HOME", "/")) / ".docker")


def _tls_of_environment(environment: Mapping[str, str], directory: Path) -> TlsMaterial | None:
    """Docker's client takes any text in `DOCKER_TLS_VERIFY` for yes, also `0`."""
    if not environment.get("DOCKER_TLS_VERIFY"):
        return None
    return read_tls(Path(environment.get("DOCKER_CERT_PATH") or directory))


def read_tls(directory: Path) -> TlsMaterial:
    """`ca.pem`, `cert.pem` and `key.pem` of `directory`, each of which may be absent.

    Raises `UsageError` for files that cannot be read, and for a certificate without its key.
    """
    if not directory.is_dir():
        raise UsageError(f"no directory with ca.pem, cert.pem and key.pem: {directory} (DOCKER_CERT_PATH)")
    ca, certificate, key = (_read(directory / f"{name}.pem") or b"" for name in ("ca", "cert", "key"))
    if bool(certificate) != bool(key):
        raise UsageError(f"{directory} has only one of cert.pem and key.pem (DOCKER_CERT_PATH)")
    return TlsMaterial(ca, certificate, key)


def _current_context(directory: Path) -> str:
    """That of Docker's `config.json`, or ""; a file that is broken is for those to complain about who need it."""
    try:
        told = json.loads(_read(directory / "config.json") or b"{}")
    except (ValueError, UsageError):
        return ""
    return str(told.get("currentContext") or "") if isinstance(told, dict) else ""


def _address_of_context(name: str, directory: Path) -> EngineAddress:
    """Docker keeps a context under the SHA-256 of its name (`cli/context/store`)."""
    key = hashlib.sha256(name.encode()).hexdigest()
    contexts = directory / "contexts"
    text = _read(contexts / "meta" / key / "meta.json")
    if text is None:
        raise UsageError(f"no Docker context is called {name!r} in {contexts} (docker context ls)")
    try:
        endpoint: Any = json.loads(text)["Endpoints"]["docker"]
        host, skip_verify = str(endpoint["Host"]), bool(endpoint.get("SkipTLSVerify"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"the Docker context {name!r} has no endpoint: {contexts}/meta/{key}/meta.json") from error
    if skip_verify:
        raise UsageError(
            f"the Docker context {name!r} skips the verification of certificates, which k3dreg does not support"
        )
    material = contexts / "tls" / key / "docker"
    return parse_engine_url(host, read_tls(material) if material.is_dir() else None)


def _read(path: Path) -> bytes | None:
    """None for a file that is not there.  Raises `UsageError`."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
