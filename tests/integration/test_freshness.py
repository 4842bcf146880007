"""What a tag means is what Docker says now: every change is seen by the next request, whatever else is asked."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.support import rig
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.one_file import archive
from tests.integration.support.private import request
from tests.integration.support.puller import ACCEPT
from tests.integration.support.rig import EngineAddress

pytestmark = pytest.mark.engines("docker29", "docker29-classic", "docker20")


@pytest.fixture
def daemon(engine: EngineAddress, tmp_path: Path) -> Iterator[Daemon]:
    with running(engine, tmp_path) as daemon:
        yield daemon


# What is done, and the ID that the name means then.
Change = tuple[Callable[[], object], Callable[[], str]]


class Names:
    """Two images, and a name that is given to one of them, or another one, or none."""

    def __init__(self, engine: EngineAddress, daemon: Daemon) -> None:
        self.docker = Docker(engine.socket)
        self.engine = engine
        self.daemon = daemon
        self.repository = f"k3dreg-freshness-{uuid.uuid4().hex[:8]}"
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

    def meaning(self) -> str:
        """The ID of the image that the name means, by k3dreg; "" for none."""
        method = "HEAD" if self.engine.containerd_store else "GET"
        response, body = request(self.daemon.host, method, f"/v2/{self.repository}/manifests/t", {"Accept": ACCEPT})
        assert response.status in (200, 404)
        if response.status == 404:
            return ""
        if self.engine.containerd_store:
            return response.headers["Docker-Content-Digest"]
        return str(json.loads(body)["config"]["digest"])

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


def changes(names: Names) -> dict[str, Change]:
    """What somebody does, and what the name means then."""
    docker, name, repository = names.docker, f"{names.name}:t", names.repository
    first, second = names.images
    saved = docker.call("GET", "/images/get", query={"names": f"{repository}-1:t"})
    other = saved.replace(f"{repository}-1".encode(), f"{repository}-3".encode())
    by_docker: dict[str, Change] = {
        "tag": (lambda: docker.tag(second, names.name, "t"), lambda: second),
        "untag": (lambda: docker.remove(name), lambda: ""),
        "build": (
            lambda: docker.build(name, {"Dockerfile": b"FROM scratch\nCOPY Dockerfile /\n"}),
            lambda: names.digest(name),
        ),
        "tag of what was built": (lambda: docker.tag(first, names.name, "t"), lambda: first),
        "load": (
            lambda: docker.call("POST", "/images/load", body=other, content_type="application/x-tar"),
            lambda: first,
        ),
        "removal": (lambda: docker.remove(name), lambda: ""),
        "tag again": (lambda: docker.tag(f"{repository}-1:t", names.name, "t"), lambda: first),
    }
    if not names.engine.containerd_store:
        return by_docker
    return {
        **by_docker,
        "containerd's removal": (lambda: names.ctr("images", "rm", name), lambda: ""),
        "containerd's tag": (
            lambda: names.ctr("images", "tag", f"docker.io/library/{repository}-1:t", name),
            lambda: first,
        ),
    }


def test_whatever_changes_is_seen_by_the_next_request(daemon: Daemon, names: Names) -> None:
    names.docker.tag(names.images[0], names.name, "t")
    for what, (change, expected) in changes(names).items():
        names.meaning()
        change()
        assert names.meaning() == expected(), what
    daemon.check_log()


def test_a_name_that_moves_fast_is_always_the_last_it_was_however_many_ask_meanwhile(names: Names) -> None:
    """Requests share an answer, but never one to a question of before they came."""
    over = threading.Event()

    def go_on_asking() -> None:
        while not over.is_set():
            names.meaning()

    names.docker.tag(names.images[0], names.name, "t")
    askers = [threading.Thread(target=go_on_asking) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        for number in range(100):
            names.docker.tag(names.images[number % 2], names.name, "t")
            assert names.meaning() == names.images[number % 2], number
    finally:
        over.set()
        for asker in askers:
            asker.join()


@pytest.mark.engines("docker29-spare")
def test_an_engine_that_was_started_again_is_asked_again(engine: EngineAddress, names: Names) -> None:
    names.docker.tag(names.images[0], names.name, "t")
    assert names.meaning() == names.images[0]
    rig.kill_engine(engine)
    try:
        # What was known of its names was so while it ran.
        assert names.meaning() == ""
    finally:
        rig.start_engine(engine)
    names.docker.tag(names.images[1], names.name, "t")
    assert names.meaning() == names.images[1]
