"""Checks of the engine: version, image store, access to its files, clock."""

from __future__ import annotations

from k3dreg.commands.checks import FAIL, OK, WARN, Check
from k3dreg.config.settings import Config
from k3dreg.docker.client import EngineClient
from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.docker.system import system_time
from k3dreg.engine_files.local_files import files_here
from k3dreg.engine_files.own_container import find_own_container
from k3dreg.oci.errors import EngineError
from k3dreg.status.source_states import source_states
from k3dreg.streaming.workers import Workers

# Seconds by which the clocks of this machine and the engine's may differ.  Certificates and tokens tolerate more.
_CLOCK = 60.0


async def engine_checks(config: Config, engine: EngineClient, workers: Workers, now: float) -> list[Check]:
    """Return the checks of the engine; only the first, if that fails.  `now` is in seconds since the epoch."""
    try:
        info = await engine.info()
    except EngineError as error:
        return [Check("engine", FAIL, f"{config.docker}: {error}", error.advice)]
    version = ".".join(map(str, info.api_version))
    checks = [Check("engine", OK, f"{info.version} at {config.docker}, API {version}"), _store(info)]
    local = files_here(engine, workers, config.docker_root, config.content_store)
    own = await workers.run(find_own_container)
    may_be_passed = config.reader == "on" and own is not None and bool(own.useful_directories(info))
    for state in await source_states(info, local, None, reader=config.reader, may_be_passed=may_be_passed):
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
            "Podman: nodes cannot pull by a registry's digest",
            "pull by tag, or start k3dreg with --origin-fallback: it fetches such images from their registry",
        )
    return Check(
        "image store",
        WARN,
        f"{info.store.value} ({info.driver}): nodes cannot pull by a registry's digest",
        'to pull by digest, set "features": {"containerd-snapshotter": true} in Docker\'s daemon.json',
    )


async def _clock(engine: EngineClient, now: float) -> Check:
    try:
        there = await system_time(engine)
    except EngineError:
        there = None
    if there is None:
        return Check("clock", OK, "the engine does not report its time")
    off = there - now
    if abs(off) > _CLOCK:
        return Check(
            "clock",
            WARN,
            f"the engine's is {off:+.0f} s from this machine's",
            "synchronize both clocks, for example by NTP",
        )
    return Check("clock", OK, f"the engine's is within {_CLOCK:.0f} s of this machine's")
