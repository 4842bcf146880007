"""`k3dreg doctor`: looks at what k3dreg needs, and says what to do about what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from attrs import asdict, frozen
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError

from k3dreg.config import Config
from k3dreg.engine.client import Engine
from k3dreg.files.local import LocalFiles
from k3dreg.insight.source_states import source_states
from k3dreg.model.engine import EngineInfo, ImageStore
from k3dreg.model.errors import EngineError
from k3dreg.streaming.bodies import read_whole
from k3dreg.streaming.workers import Workers

OK, WARN, FAIL = "ok", "warn", "fail"

# Seconds by which the clocks of this machine and the engine's may differ: certificates and tokens stand more.
_CLOCK = 60.0
_LARGEST_ANSWER = 1024 * 1024


@frozen
class Check:
    """What was looked at, the verdict (`OK`, `WARN`, `FAIL`), what was seen, and what to do; "" for nothing."""

    name: str
    verdict: str
    says: str
    advice: str = ""


async def examine(
    config: Config, engine: Engine, workers: Workers, reactor: Any, environment: Mapping[str, str]
) -> list[Check]:
    """All checks.  Nothing is changed, and nothing is raised for what is wrong."""
    checks = [*await _engine(config, engine, workers, reactor.seconds())]
    checks.append(await workers.run(state_directory, config.state_dir, config.cache_size))
    for endpoint in config.listen:
        checks.append(await port(endpoint, reactor))
    checks.append(await workers.run(credential_helpers, environment))
    return checks


def status_of(checks: Sequence[Check]) -> int:
    """The exit status: 1 if anything failed."""
    return int(any(check.verdict == FAIL for check in checks))


def as_text(checks: Sequence[Check]) -> str:
    """Lines for people."""
    lines = []
    for check in checks:
        lines.append(f"{check.verdict:5} {check.name}: {check.says}")
        if check.advice:
            lines.append(f"      {check.advice}")
    return "\n".join(lines)


def as_json(checks: Sequence[Check]) -> str:
    """One object, for programs."""
    return json.dumps({"ok": not status_of(checks), "checks": [asdict(check) for check in checks]})


async def _engine(config: Config, engine: Engine, workers: Workers, now: float) -> list[Check]:
    try:
        info = await engine.info()
    except EngineError as error:
        return [Check("engine", FAIL, f"{config.docker}: {error}", error.advice)]
    version = ".".join(map(str, info.api_version))
    checks = [Check("engine", OK, f"{info.version} at {config.docker}, API {version}"), _store(info)]
    local = LocalFiles(engine, workers, docker_root=config.docker_root, content_store=config.content_store)
    for state in await source_states(info, local, reader=config.reader):
        checks.append(Check(f"source: {state.name}", WARN if state.open_it else OK, state.says, state.open_it))
    checks.append(await _clock(engine, now))
    return checks


def _store(info: EngineInfo) -> Check:
    if info.store is ImageStore.CONTAINERD:
        return Check("image store", OK, "containerd: images have their registry's digests")
    if info.store is ImageStore.PODMAN:
        return Check(
            "image store",
            WARN,
            "Podman's: images cannot be asked for by their registry's digest",
            "--origin-fallback fetches those from there",
        )
    return Check(
        "image store",
        WARN,
        f"{info.store.value} ({info.driver}): images cannot be asked for by their registry's digest",
        'for digests, "features": {"containerd-snapshotter": true} in Docker\'s daemon.json',
    )


async def _clock(engine: Engine, now: float) -> Check:
    try:
        response = await engine.request("GET", "/info")
        told = json.loads(await read_whole(engine.body(response, "/info"), _LARGEST_ANSWER))
        text = str(told["SystemTime"])
        # RFC 3339 with nanoseconds, of which Python takes six digits.
        head, _, rest = text.partition(".")
        zone = rest.lstrip("0123456789") if rest else ""
        there = datetime.fromisoformat(head + zone if rest else text).timestamp()
    except (EngineError, ValueError, KeyError, TypeError):
        return Check("clock", OK, "the engine does not tell its time")
    off = there - now
    if abs(off) > _CLOCK:
        return Check("clock", WARN, f"the engine's is {off:+.0f} s from this machine's", "set them by NTP")
    return Check("clock", OK, f"the engine's is within {_CLOCK:.0f} s of this machine's")


def state_directory(directory: Path, cache_size: int) -> Check:
    """Whether it can be used, and has room.  Blocks."""
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check("state directory", FAIL, f"{directory} cannot be written", "--state-dir DIR, one of your own")
    usage = shutil.disk_usage(existing)
    held = sum(file.stat().st_size for file in (directory / "blobs").rglob("*") if file.is_file())
    room = usage.free + held
    said = f"{directory}, {usage.free / 1e9:.1f} GB free"
    if room < cache_size:
        return Check(
            "state directory",
            WARN,
            f"{said}: less than the {cache_size / 1e9:.1f} GB that may be kept",
            f"--cache-size {max(room // 2, 10**8) // 10**6}MB, or make room",
        )
    return Check("state directory", OK, said)


async def port(endpoint: str, reactor: Any) -> Check:
    """Whether it can be listened on.  One that a running k3dreg has counts as taken, and is no failure of k3dreg's."""
    from twisted.internet.protocol import Factory

    name = f"port: {endpoint}"
    try:
        listening = await serverFromString(reactor, endpoint).listen(Factory())
    except CannotListenError as error:
        reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
        return Check(name, WARN, f"{reason}: k3dreg runs already, or another program is there", "--listen ENDPOINT")
    except OSError as error:
        return Check(name, FAIL, str(error.strerror or error), "--listen ENDPOINT")
    await listening.stopListening()
    return Check(name, OK, "free")


def credential_helpers(environment: Mapping[str, str]) -> Check:
    """Whether the programs that Docker's config.json names are there.  Blocks."""
    home = environment.get("DOCKER_CONFIG") or os.path.join(environment.get("HOME", "."), ".docker")
    path = Path(home) / "config.json"
    try:
        told = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Check("credentials", OK, f"none: {path} is not there; a pod's own credentials are used")
    except (OSError, ValueError) as error:
        return Check("credentials", FAIL, f"{path} cannot be read: {error}", "docker login")
    helpers: set[str] = set()
    if isinstance(told, dict):
        named = told.get("credHelpers")
        helpers = {str(each) for each in (*(named.values() if isinstance(named, dict) else ()), told.get("credsStore"))}
    helpers -= {"", "None"}
    programs = sorted(f"docker-credential-{helper}" for helper in helpers)
    missing = [program for program in programs if shutil.which(program, path=environment.get("PATH")) is None]
    if missing:
        return Check(
            "credentials", FAIL, f"{path} names {', '.join(missing)}, not on the PATH", "install it, or log in"
        )
    return Check("credentials", OK, f"{path}{', ' + ', '.join(programs) if programs else ''}")
