"""Find the engine when `--docker` is not given, as Docker's client does.

The order is that of docker/cli (`cli/command/cli.go`, `resolveContextName`): `DOCKER_HOST`, then the context that
`DOCKER_CONTEXT` names, then the current context of `config.json`, then the default socket.  If the default socket
cannot be used, the sockets of other installations follow.  The functions read files, which blocks.
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
    """Return the address of the engine at `url`, or of the engine in Docker's settings if `url` is "".

    `DOCKER_TLS_VERIFY` and `DOCKER_CERT_PATH` are used for TCP, unless the address comes from a context, which has its
    own certificates.  Raises `UsageError` for settings that cannot be used.
    """
    directory = _docker_directory(environment)
    if url := url or environment.get("DOCKER_HOST", ""):
        return parse_engine_url(url, _tls_of_environment(environment, directory) if "://" in url else None)
    name = environment.get("DOCKER_CONTEXT") or _current_context(directory)
    if name and name != "default":
        return _address_of_context(name, directory)
    return EngineAddress(path=usual_socket(environment))


def usual_sockets(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the paths where engines usually have their sockets, the likeliest first."""
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
    """Return the first of `usual_sockets` that this process may use; the default one if there is none.

    `usable` tells whether this process may use the socket at a path (default: it may read and write it).
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
    """Return the certificates that the environment names, None without `DOCKER_TLS_VERIFY`.

    Docker's client takes any text in `DOCKER_TLS_VERIFY`, even `0`, for yes.
    """
    if not environment.get("DOCKER_TLS_VERIFY"):
        return None
    return read_tls(Path(environment.get("DOCKER_CERT_PATH") or directory))


def read_tls(directory: Path) -> TlsMaterial:
    """Return `ca.pem`, `cert.pem` and `key.pem` of `directory`, each of which may be absent.  Blocks.

    Raises `UsageError` for files that cannot be read, and for a certificate or a key without the other.
    """
    if not directory.is_dir():
        raise UsageError(f"no directory with ca.pem, cert.pem and key.pem: {directory} (DOCKER_CERT_PATH)")
    ca, certificate, key = (_read(directory / f"{name}.pem") or b"" for name in ("ca", "cert", "key"))
    if bool(certificate) != bool(key):
        raise UsageError(f"{directory} has only one of cert.pem and key.pem (DOCKER_CERT_PATH)")
    return TlsMaterial(ca, certificate, key)


def _current_context(directory: Path) -> str:
    """Return the current context in Docker's `config.json`, "" for none.

    A broken file counts as none here, because an engine may be found without it.
    """
    try:
        told = json.loads(_read(directory / "config.json") or b"{}")
    except (ValueError, UsageError):
        return ""
    return str(told.get("currentContext") or "") if isinstance(told, dict) else ""


def _address_of_context(name: str, directory: Path) -> EngineAddress:
    """Return the engine's address in a context, which Docker stores under the SHA-256 of its name.

    The files are those of docker/cli, `cli/context/store`.  Raises `UsageError`.
    """
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
    """Return the content of a file, None if there is none.  Raises `UsageError` if it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
