"""The engine's directories, passed to a k3dreg in a container that has nothing but the socket, and to no other."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import PushedImage
from tests.integration.support import nobody, rig
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.image import IMAGE, build
from tests.integration.support.images import VERDICT
from tests.integration.support.k3d import SOCKET, Container, container, network, registry
from tests.integration.support.node import Node
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress

# The user nobody of Debian, as a number.
NOBODY = 65534
PASSED = r"a helper container passed their directories in [0-9.]+ s"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """k3dreg's image as `docker save` writes it."""
    spares = [spare for spare in rig.spares() if spare.name == "docker29-classic-spare"]
    if not spares:
        rig.unavailable("docker29-classic-spare is not among K3DREG_TEST_SPARES:")
    file = tmp_path_factory.mktemp("image") / "image.tar"
    with rig.alone(spares[0].name):
        build(spares[0])
        query = {"names": IMAGE}
        with Docker(spares[0].socket).open("GET", "/images/get", query=query) as archive, file.open("wb") as to:
            shutil.copyfileobj(archive, to, 1024 * 1024)
    yield file
    file.unlink()


@pytest.fixture(scope="module")
def image(engine: EngineAddress, saved: Path) -> Iterator[str]:
    """k3dreg's image, in the engine."""
    docker = Docker(engine.socket)
    with saved.open("rb") as file:
        docker.progress("POST", "/images/load", body=file, query={"quiet": "1"}, content_type="application/x-tar")
    yield IMAGE
    docker.remove(IMAGE)


@pytest.fixture
def held(engine: EngineAddress, small_image: PushedImage) -> Iterator[PushedImage]:
    small_image.pull_into(engine)
    yield small_image
    small_image.remove_from(engine)


def started(engine: EngineAddress, image: str, port: int, *options: str, **host: Any) -> dict[str, Any]:
    """`docker run -v /var/run/docker.sock:/var/run/docker.sock --network host k3dreg k3dreg --listen tcp:PORT`."""
    binds = [f"{engine.inner_socket}:{SOCKET}"]
    command = ["k3dreg", "--listen", f"tcp:{port}:interface=127.0.0.1", *options]
    return {"Image": image, "Cmd": command, "HostConfig": {"Binds": binds, "NetworkMode": "host", **host}}


def everything(docker: Docker) -> dict[str, set[str]]:
    """What a user sees in his Docker."""
    volumes = docker.ask("GET", "/volumes")["Volumes"] or []
    return {
        "containers": {each["Id"] for each in docker.ask("GET", "/containers/json", all="1")},
        "images": {each["Id"] for each in docker.ask("GET", "/images/json", all="1")},
        "volumes": {each["Name"] for each in volumes},
    }


def settled(docker: Docker) -> dict[str, set[str]]:
    """What is in Docker once it changes no more.

    Docker 26 goes on listing an image for a while after its removal, so that of an earlier test may still be there.
    """
    end = time.monotonic() + 30
    found, since = everything(docker), time.monotonic()
    while time.monotonic() < since + 1:
        assert time.monotonic() < end, "what is in Docker goes on changing"
        time.sleep(0.1)
        if (now := everything(docker)) != found:
            found, since = now, time.monotonic()
    return found


def events(docker: Docker, since: float, kind: str) -> int:
    """How many events of this kind the engine tells since then."""
    query = {
        "since": f"{since:.6f}",
        "until": f"{time.time():.6f}",
        "filters": json.dumps({"event": [kind]}),
    }
    return len(docker.call("GET", "/events", query=query).splitlines())


def archives_read(docker: Docker, since: float) -> int:
    """How many files the engine was asked for through containers."""
    return events(docker, since, "archive-path")


def starts(docker: Docker, since: float) -> int:
    """How many containers were started."""
    return events(docker, since, "start")


def pull(image: PushedImage, port: int) -> int:
    """All of it; every digest is verified."""
    return Puller(f"127.0.0.1:{port}", image.registry).image(image.repository, image.tag)


def check_files_are_read_in_place(docker: Docker, held: PushedImage, port: int, body: dict[str, Any]) -> None:
    """And that nothing is left in Docker."""
    before, began = settled(docker), time.time()
    with container(docker, f"k3dreg-{uuid.uuid4().hex[:8]}", body) as made:
        made.start()
        print(made.wait_for(PASSED)[0])
        during = settled(docker)
        assert pull(held, port) > 400_000
        assert archives_read(docker, began) == 0
        assert docker.exports(began, time.time()) == 0
        # Only k3dreg itself, and its volume.
        assert [len(during[kind] - before[kind]) for kind in before] == [1, 0, 1]
        assert settled(docker) == during
        made.check_log()
        assert made.stop()[0] in (0, 143)
    assert settled(docker) == before


@pytest.mark.engines("docker29", "docker29-classic", "docker26")
def test_files_are_read_in_place_where_k3d_has_made_the_container(
    engine: EngineAddress, docker: Docker, image: str, held: PushedImage, port: int
) -> None:
    with network(docker, f"k3d-{uuid.uuid4().hex[:8]}") as cluster:
        body = registry(image, "k3d-dev", cluster, [f"{engine.inner_socket}:{SOCKET}"], port=port)
        check_files_are_read_in_place(docker, held, port, body)


@pytest.mark.engines("docker29-classic", "docker20")
@pytest.mark.parametrize("how", ["the host's network", "no more rights than it needs"])
def test_and_where_anybody_else_has(
    engine: EngineAddress, docker: Docker, image: str, held: PushedImage, port: int, how: str
) -> None:
    body = {
        "the host's network": lambda: started(engine, image, port),
        "no more rights than it needs": lambda: started(
            engine, image, port, CapDrop=["ALL"], CapAdd=["DAC_OVERRIDE"], ReadonlyRootfs=True
        ),
    }[how]()
    check_files_are_read_in_place(docker, held, port, body)


@pytest.mark.engines("docker29", "docker26")
def test_of_the_containerd_store_it_need_not_be_root(
    engine: EngineAddress, docker: Docker, image: str, held: PushedImage, port: int
) -> None:
    group = str(Path(engine.socket).stat().st_gid)
    body = {**started(engine, image, port, GroupAdd=[group], CapDrop=["ALL"]), "User": "65534"}
    check_files_are_read_in_place(docker, held, port, body)


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of nobody's."""
    directory = Path(tempfile.mkdtemp(prefix="k3dreg-nobody-"))
    os.chown(directory, NOBODY, NOBODY)
    yield directory
    shutil.rmtree(directory)


@contextlib.contextmanager
def running_as_nobody(engine: EngineAddress, home: Path, *options: str) -> Iterator[Daemon]:
    """A k3dreg of this machine's, not in a container; whoever runs it may use the engine's socket, and no more."""
    before = nobody.words(NOBODY, Path(engine.socket).stat().st_gid)
    with running(engine, home, *options, before=before) as daemon:
        yield daemon


@pytest.mark.engines("docker29", "docker26", "docker29-classic")
def test_an_ordinary_user_of_this_machine_is_served_by_the_api(
    engine: EngineAddress, held: PushedImage, home: Path
) -> None:
    docker = Docker(engine.socket)
    before, began = settled(docker), time.time()
    with running_as_nobody(engine, home) as daemon:
        assert Puller(daemon.host, held.registry).image(held.repository, held.tag) > 400_000
        assert archives_read(docker, began) > 0
        assert docker.exports(began, time.time()) == 0
        # Nothing has run in Docker: what it was asked to make was never started.
        assert starts(docker, began) == 0
        assert "helper container" not in daemon.log()
    assert settled(docker) == before


@pytest.mark.engines("docker29")
@pytest.mark.parametrize("end", [Container.stop, Container.kill], ids=["stopped", "killed"])
def test_one_that_ends_meanwhile_leaves_nothing_once_it_has_run_again(
    engine: EngineAddress, docker: Docker, image: str, port: int, end: Callable[[Container], object]
) -> None:
    before = settled(docker)
    with container(docker, f"k3dreg-{uuid.uuid4().hex[:8]}", started(engine, image, port)) as made:
        alone = len(settled(docker)["containers"])
        # It may be over before it was seen.
        for _ in range(20):
            made.begin()
            if is_seen(docker, made, alone):
                break
            made.stop()
        else:
            pytest.fail("the helper container was never seen")
        began = time.monotonic()
        end(made)
        # Not when the container that is no more was to have done its work.
        assert time.monotonic() - began < 10
        if end == Container.stop:
            assert len(settled(docker)["containers"]) == alone
        made.start()
        made.wait_for(PASSED)
        assert len(settled(docker)["containers"]) == alone
    assert settled(docker) == before


def is_seen(docker: Docker, made: Container, alone: int) -> bool:
    """Whether a container more is in Docker before the directories are there."""
    while len(everything(docker)["containers"]) == alone:
        if "passed their directories" in made.log():
            return False
    return True


@pytest.mark.engines("docker29", "docker29-classic")
def test_a_node_runs_what_it_got_so_and_a_restart_asks_again(
    engine: EngineAddress, image: str, layered_image: PushedImage, one_node: Node, port: int
) -> None:
    docker = layered_image.pull_into(engine)
    with container(docker, f"k3dreg-{uuid.uuid4().hex[:8]}", started(engine, image, port)) as made:
        made.start()
        made.wait_for(PASSED)
        one_node.use_mirror(f"127.0.0.1:{port}")
        one_node.pull(layered_image.name)
        assert one_node.run(layered_image.name).split("\n")[:2] == [layered_image.message, VERDICT]
        assert made.stop()[0] in (0, 143)
        made.start()
        made.wait_for(PASSED)
        assert pull(layered_image, port) > 1e8
        made.check_log()
    one_node.clean()
    layered_image.remove_from(engine)


@pytest.mark.engines("docker29-classic")
@pytest.mark.parametrize("how", ["--reader stopped", "--reader off", "nobody", "no right to read everything"])
def test_where_nothing_may_be_passed_the_api_serves(
    engine: EngineAddress, docker: Docker, image: str, held: PushedImage, port: int, how: str
) -> None:
    group = str(Path(engine.socket).stat().st_gid)
    body = {
        "--reader stopped": lambda: started(engine, image, port, "--reader", "stopped"),
        "--reader off": lambda: started(engine, image, port, "--reader", "off"),
        "nobody": lambda: {**started(engine, image, port, GroupAdd=[group]), "User": "65534"},
        "no right to read everything": lambda: started(engine, image, port, CapDrop=["ALL"]),
    }[how]()
    began = time.time()
    with container(docker, f"k3dreg-{uuid.uuid4().hex[:8]}", body) as made:
        made.start()
        made.wait_for("images come from Docker")
        assert pull(held, port) > 400_000
        assert (archives_read(docker, began) > 0) == (how != "--reader off")
        assert "passed their directories" not in made.log()
        made.check_log()
        assert made.stop()[0] in (0, 143)
