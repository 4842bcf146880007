"""Where Docker's files are read in place: nothing is asked twice, and every change is seen by the next request."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.integration.support import rig
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.one_file import archive
from tests.integration.support.private import request
from tests.integration.support.puller import ACCEPT
from tests.integration.support.rig import EngineAddress
from tests.integration.support.watched import watched

pytestmark = pytest.mark.engines("docker29")

# Seconds after a change for which k3dreg goes on asking.
SETTLED = 3.0


@pytest.fixture
def asked(engine: EngineAddress, tmp_path: Path) -> Iterator[list[str]]:
    with watched(engine.socket, tmp_path / "engine.sock") as asked:
        yield asked


@pytest.fixture
def daemon(engine: EngineAddress, tmp_path: Path, asked: list[str]) -> Iterator[Daemon]:
    by_the_way = evolve(engine, url=f"unix://{tmp_path}/engine.sock")
    data = str(engine.directory / "data")
    with running(by_the_way, tmp_path, "--docker-root", data) as daemon:
        yield daemon


class Names:
    """Two images, and a name that is given to one of them, or another one, or none."""

    def __init__(self, engine: EngineAddress, daemon: Daemon) -> None:
        self.docker = Docker(engine.socket)
        self.engine = engine
        self.daemon = daemon
        self.repository = f"k3dreg-remembered-{uuid.uuid4().hex[:8]}"
        self.name = f"localhost:{daemon.host.rpartition(':')[2]}/{self.repository}"
        self.images = [self.made(f"{self.repository}-{number}") for number in (1, 2)]

    def made(self, repository: str) -> str:
        """A new image; its digest."""
        query = {"fromSrc": "-", "repo": repository, "tag": "t"}
        body = archive(os.urandom(1000))
        self.docker.progress("POST", "/images/create", body=body, query=query, content_type="application/x-tar")
        return self.digest(f"{repository}:t")

    def digest(self, name: str) -> str:
        found = self.docker.inspect(name)
        return str(found["Id"]) if found else ""

    def head(self) -> str:
        """What the name means, by k3dreg."""
        response, _ = request(self.daemon.host, "HEAD", f"/v2/{self.repository}/manifests/t", {"Accept": ACCEPT})
        assert response.status in (200, 404)
        return response.headers["Docker-Content-Digest"] if response.status == 200 else ""

    def ctr(self, *words: str) -> None:
        """Containerd's own client, of which Docker knows nothing."""
        *before, _ = shlex.split(rig.setting("K3DREG_TEST_DOCKER"))
        directory = self.engine.directory
        socket = next(directory.rglob("containerd.sock"))
        inner = str(socket)[str(socket).index("/k3dreg-test/") :]
        command = [*before, "ctr", "--address", inner, "--namespace", "moby", *words]
        subprocess.run(command, check=True, capture_output=True)

    def remove(self) -> None:
        for name in (self.name, *(f"{self.repository}-{number}" for number in (1, 2, 3))):
            self.docker.remove(f"{name}:t")


@pytest.fixture
def names(engine: EngineAddress, daemon: Daemon) -> Iterator[Names]:
    daemon.wait_for("this registry is also localhost:")
    names = Names(engine, daemon)
    yield names
    names.remove()


def settle(names: Names, asked: list[str]) -> None:
    """Nothing has changed for so long that k3dreg remembers what the name means."""
    names.head()  # the first of all makes k3dreg look for the engine's database
    for _ in range(10):
        time.sleep(SETTLED)
        known = names.head()
        del asked[:]
        assert {names.head() for _ in range(5)} == {known}
        if not asked:  # else the engine itself did something, as after a start
            return
    raise AssertionError(f"asked in the last round: {asked}")


def changes(names: Names) -> dict[str, tuple[Callable[[], object], Callable[[], str]]]:
    """What somebody does, and what the name means then."""
    docker, name, repository = names.docker, f"{names.name}:t", names.repository
    first, second = names.images
    saved = docker.call("GET", "/images/get", query={"names": f"{repository}-1:t"})
    other = saved.replace(f"{repository}-1".encode(), f"{repository}-3".encode())
    return {
        "tag": (lambda: docker.tag(second, names.name, "t"), lambda: second),
        "untag": (lambda: docker.remove(name), lambda: ""),
        "containerd's tag": (
            lambda: names.ctr("images", "tag", f"docker.io/library/{repository}-1:t", name),
            lambda: first,
        ),
        "build": (
            lambda: docker.build(name, {"Dockerfile": b"FROM scratch\nCOPY Dockerfile /\n"}),
            lambda: names.digest(name),
        ),
        "tag of what was built": (lambda: docker.tag(first, names.name, "t"), lambda: first),
        "containerd's removal": (lambda: names.ctr("images", "rm", name), lambda: ""),
        "load": (
            lambda: docker.call("POST", "/images/load", body=other, content_type="application/x-tar"),
            lambda: "",
        ),
        "tag again": (lambda: docker.tag(f"{repository}-1:t", names.name, "t"), lambda: first),
    }


def test_whatever_changes_is_seen_by_the_next_request(
    engine: EngineAddress, daemon: Daemon, names: Names, asked: list[str]
) -> None:
    names.docker.tag(names.images[0], names.name, "t")
    for what, (change, expected) in changes(names).items():
        settle(names, asked)
        change()
        assert names.head() == expected(), what
        assert asked != [], what
    daemon.check_log()


def test_a_name_that_moves_fast_is_always_the_last_it_was(names: Names) -> None:
    for number in range(100):
        names.docker.tag(names.images[number % 2], names.name, "t")
        assert names.head() == names.images[number % 2], number
        # Every now and then what was learned is remembered.
        if number % 30 == 29:
            time.sleep(SETTLED)
            assert names.head() == names.images[number % 2]


@pytest.mark.engines("docker29-spare")
def test_an_engine_that_was_started_again_is_asked_again(
    engine: EngineAddress, daemon: Daemon, names: Names, asked: list[str]
) -> None:
    names.docker.tag(names.images[0], names.name, "t")
    settle(names, asked)
    rig.kill_engine(engine)
    try:
        # It is asked now: what was known of its names was so while it ran.
        assert names.head() == ""
    finally:
        rig.start_engine(engine)
    names.docker.tag(names.images[1], names.name, "t")
    assert names.head() == names.images[1]
    settle(names, asked)
