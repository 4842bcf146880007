"""Checks of this machine: the engine's socket, the state directory, credential helpers.  They block."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from k3dreg.commands.checks import FAIL, OK, WARN, Check
from k3dreg.config.engine_address import EngineAddress
from k3dreg.credentials.docker_config_file import config_path
from k3dreg.formats.text import size


def socket_file(address: EngineAddress) -> Check:
    """Check that the engine's socket exists and that this user may use it.  It does not connect."""
    path = address.path
    if not path or address.ssh:
        return Check("socket", OK, f"none on this machine: the engine is at {address}")
    try:
        found = os.stat(path)
    except PermissionError:
        return Check("socket", FAIL, f"{path}: k3dreg may not open its directory", _permission(""))
    except OSError as error:
        return Check(
            "socket", FAIL, f"{path}: {error.strerror}", "start Docker, or name its address: --docker URL (DOCKER_HOST)"
        )
    if not stat.S_ISSOCK(found.st_mode):
        return Check("socket", FAIL, f"{path} is not a socket", "name the engine's socket: --docker URL (DOCKER_HOST)")
    owner = _name(lambda: pwd.getpwuid(found.st_uid).pw_name, found.st_uid)
    group = _name(lambda: grp.getgrgid(found.st_gid).gr_name, found.st_gid)
    said = f"{path}, {stat.filemode(found.st_mode)} {owner}:{group}"
    if not os.access(path, os.R_OK | os.W_OK):
        me = _name(lambda: pwd.getpwuid(os.geteuid()).pw_name, os.geteuid())
        return Check("socket", FAIL, f"{said}, which {me} may not use", _permission(group))
    return Check("socket", OK, said)


def _permission(group: str) -> str:
    return f"run k3dreg as root, or as a user of the group {group or 'docker'} (usermod -aG {group or 'docker'} USER)"


def _name(look: Callable[[], str], number: int) -> str:
    """Return the name of a user or group; the number if it has no name, as in a container."""
    try:
        return look()
    except KeyError:
        return str(number)


def state_directory(directory: Path, cache_size: int) -> Check:
    """Check that the state directory can be written and its disk has room for `cache_size` bytes."""
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            "state directory",
            FAIL,
            f"{directory} cannot be written",
            "choose a directory that k3dreg may write: --state-dir DIR",
        )
    usage = shutil.disk_usage(existing)
    held = 0
    for file in (directory / "blobs").rglob("*"):
        with contextlib.suppress(OSError):  # a running daemon may remove files meanwhile
            found = file.stat()
            held += found.st_size if stat.S_ISREG(found.st_mode) else 0
    room = usage.free + held
    said = f"{directory}, {size(usage.free)} free"
    if room < cache_size:
        return Check(
            "state directory",
            WARN,
            f"{said}: less than the {size(cache_size)} of --cache-size",
            f"set --cache-size {max(room // 2, 10**8) // 10**6}MB, or free disk space",
        )
    return Check("state directory", OK, said)


def credential_helpers(environment: Mapping[str, str]) -> Check:
    """Check that the credential helpers that Docker's config.json names are installed."""
    path = config_path(environment)
    try:
        told = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Check("credentials", OK, f"none: {path} is not there; a pod's own credentials are used")
    except (OSError, ValueError) as error:
        return Check("credentials", FAIL, f"{path} cannot be read: {error}", "correct the file, or run docker login")
    helpers: set[str] = set()
    if isinstance(told, dict):
        named = told.get("credHelpers")
        helpers = {str(each) for each in (*(named.values() if isinstance(named, dict) else ()), told.get("credsStore"))}
    helpers -= {"", "None"}
    programs = sorted(f"docker-credential-{helper}" for helper in helpers)
    missing = [program for program in programs if shutil.which(program, path=environment.get("PATH")) is None]
    if missing:
        return Check(
            "credentials",
            FAIL,
            f"{path} names {', '.join(missing)}, not found on the PATH",
            "install the helper, or remove it from config.json and run docker login",
        )
    return Check("credentials", OK, f"{path}{', ' + ', '.join(programs) if programs else ''}")
