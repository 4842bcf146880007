"""What the integration tests run against.

That is one person's own Docker, which K3DREG_TEST_ENGINE names, or what the variables of `.ci/engines env` name.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
from attrs import frozen

from tests.integration.support.docker_api import Docker

REPOSITORY = Path(__file__).resolve().parents[3]
HOW = "needs real engines: run .ci/run as root on a Debian machine (CONTRIBUTING.md)"
OWN = "own"
NEWEST = 29


@frozen
class EngineAddress:
    """An engine by the name it has in `.ci/engines`, or `own`."""

    name: str
    url: str

    @property
    def socket(self) -> str:
        return self.url.removeprefix("unix://")

    @property
    def inner_socket(self) -> str:
        """The socket as a path in the chroot of the engine and its client.  Skips the test on a person's own Docker."""
        if self.name == OWN:
            unavailable("the test uses a client in the engine's chroot:")
        return self.socket[self.socket.index("/k3dreg-test/") :]

    @property
    def directory(self) -> Path:
        """The directory with the engine's settings and data.  Skips the test on a person's own Docker."""
        if self.name == OWN:
            unavailable("the test uses the engine's own files:")
        return Path(self.socket).parent

    @property
    def containerd_store(self) -> bool:
        """True if the engine has the containerd image store, by its own word."""
        return ["driver-type", "io.containerd.snapshotter.v1"] in (_info(self.socket).get("DriverStatus") or [])

    def stands_for(self, names: Sequence[str]) -> bool:
        """Return whether tests for the engines of these names are for this one, too.

        One of them must have the same image store, and must not be older than this engine.
        """
        version = re.match(r"\d+", _info(self.socket)["ServerVersion"])
        major = min(int(version[0]), NEWEST) if version else NEWEST
        for name in names:
            # In `.ci/engines`: `docker29` has the containerd store, `docker29-classic` and `docker20` the classic one.
            found = re.fullmatch(r"docker(\d+)(-classic)?", name)
            if found and int(found[1]) >= major:
                has_containerd = not found[2] and int(found[1]) > 20
                if has_containerd == self.containerd_store:
                    return True
        return False


@cache
def _info(socket: str) -> dict[str, Any]:
    found: dict[str, Any] = Docker(socket).ask("GET", "/info")
    return found


@frozen
class NodeAddress:
    """A containerd with its CRI plugin: its socket as a path on this machine, and the root directory it lives in."""

    name: str
    socket: Path
    chroot: Path

    @property
    def directory(self) -> Path:
        return self.socket.parent

    @property
    def inner_socket(self) -> str:
        return f"/{self.socket.relative_to(self.chroot)}"


def _pairs(variable: str) -> list[tuple[str, str]]:
    words = os.environ.get(variable, "").split(",")
    return [(name, value) for name, equals, value in (word.partition("=") for word in words) if equals]


def is_there() -> bool:
    """Return whether there is any engine to test with, or there ought to be."""
    return bool(engines() or spares() or podmans()) or os.environ.get("CI") == "true"


def own() -> EngineAddress | None:
    """Return a person's own Docker, if K3DREG_TEST_ENGINE names one."""
    url = os.environ.get("K3DREG_TEST_ENGINE", "")
    if url and not url.startswith("unix:///"):
        raise pytest.UsageError(f"K3DREG_TEST_ENGINE must be a socket of this machine, unix:///PATH, and is {url!r}")
    return EngineAddress(OWN, url) if url else None


def engines() -> list[EngineAddress]:
    if engine := own():
        return [engine]
    return [EngineAddress(name, url) for name, url in _pairs("K3DREG_TEST_ENGINES")]


def second() -> EngineAddress | None:
    """Return another engine of the kind and the name of one of `engines`, for some of its tests."""
    return next((EngineAddress(name, url) for name, url in _pairs("K3DREG_TEST_SECOND")), None)


def spares() -> list[EngineAddress]:
    return [EngineAddress(name, url) for name, url in _pairs("K3DREG_TEST_SPARES")]


def podmans() -> list[EngineAddress]:
    return [EngineAddress(name, url) for name, url in _pairs("K3DREG_TEST_PODMAN")]


def nodes() -> list[NodeAddress]:
    found = []
    for name, value in _pairs("K3DREG_TEST_NODES"):
        socket, _, chroot = value.rpartition(":")
        found.append(NodeAddress(name, Path(socket), Path(chroot)))
    return found


def bridged() -> tuple[EngineAddress, int]:
    """Return the engine that has bridge networks, and a process in its network namespace."""
    setting("K3DREG_TEST_BRIDGED")
    [(name, value)] = _pairs("K3DREG_TEST_BRIDGED")
    url, _, pid = value.rpartition(":")
    return EngineAddress(name, url), int(pid)


def unavailable(what: str) -> NoReturn:
    """Skips the test; on the CI machine, where nothing may be missing, fails it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} {HOW}, and CI=true")
    pytest.skip(f"{what} {HOW}")


def setting(variable: str) -> str:
    """The variable's value; where there is none, the test is skipped."""
    value = os.environ.get(variable, "")
    if not value:
        unavailable(f"{variable} is not set:")
    return value


# What this process uses alone at the moment.
_ALONE: set[str] = set()


@contextmanager
def alone(*things: str) -> Generator[None]:
    """Wait until no other process of the tests uses any of these things, and keep them from these meanwhile."""
    with ExitStack() as kept:
        for what in sorted(things):  # in the same order everywhere, so that no two processes wait for each other
            path = Path(tempfile.gettempdir()) / f"k3dreg-tests-{os.getuid()}-{what}.lock"
            fcntl.flock(kept.enter_context(path.open("w")), fcntl.LOCK_EX)
            _ALONE.add(what)
            kept.callback(_ALONE.remove, what)
        yield


def is_alone(what: str) -> bool:
    """Return whether this process keeps the others from `what`."""
    return what in _ALONE


def kill_engine(engine: EngineAddress) -> None:
    """SIGKILL to the engine, as a crash or the kernel's out-of-memory killer would."""
    subprocess.run([REPOSITORY / ".ci/engines", "kill", engine.name], check=True, timeout=60)


@contextmanager
def mirrors(engine: EngineAddress, *urls: str) -> Generator[None]:
    """Docker Hub's images are asked for at `urls` first, in this order."""
    directory = engine.directory
    file = directory / "daemon.json"
    before = file.read_text()

    def say(*mirrors: str) -> None:
        file.write_text(json.dumps({**json.loads(before), "registry-mirrors": mirrors}))
        os.kill(int((directory / "pid").read_text()), signal.SIGHUP)
        docker, end = Docker(engine.socket), time.monotonic() + 10
        while len(docker.ask("GET", "/info")["RegistryConfig"]["Mirrors"] or ()) != len(mirrors):
            assert time.monotonic() < end, "the engine did not read its settings again"
            time.sleep(0.05)

    try:
        say(*urls)
        yield
    finally:
        say()  # what is not there at all is left as it was
        file.write_text(before)


def start_engine(engine: EngineAddress) -> None:
    """Bring it up again; returns when it answers."""
    subprocess.run([REPOSITORY / ".ci/engines", "up", engine.name], check=True, timeout=90, stdout=subprocess.DEVNULL)


def program(name: str) -> Path:
    """A command that `.ci/engines` built; where there is none, the test is skipped."""
    path = dict(_pairs("K3DREG_TEST_PROGRAMS")).get(name)
    if path is None:
        unavailable(f"{name} is not in K3DREG_TEST_PROGRAMS, since it was not built (.ci/engines build):")
    return Path(path)
