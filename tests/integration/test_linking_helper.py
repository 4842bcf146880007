"""Layers linked by a helper container, for a k3dreg in a container or of an ordinary user, for both image stores."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.support import nobody, rig
from tests.integration.support.clusters import MORE, Clusters, documented
from tests.integration.support.daemon import program
from tests.integration.support.docker_api import Docker
from tests.integration.support.k3d import SOCKET, Container, container, network, registry, shared_with
from tests.integration.support.linked import (
    blobs_sent,
    build,
    kind_node,
    leases,
    listing_of,
    prepare_kind,
    rich_image,
    snapshots,
)
from tests.integration.support.node import Node

both_stores = pytest.mark.engines("docker29", "docker29-classic")

STARTED = r"layers are linked by a helper container, which started in [\d.]+ s"
LINKED = r"after: linked (\d+) layers?, ([\d,]+) files, ([\d.]+) s, (\S+),"
# The user nobody of Debian, as a number.
NOBODY = 65534


def helpers(docker: Docker) -> list[str]:
    """Return the IDs of the helper containers, running or not."""
    filters = '{"label": ["k3dreg.role=linking"]}'
    return [each["Id"] for each in docker.ask("GET", "/containers/json", all="1", filters=filters)]


def wait_for_helpers(docker: Docker, count: int, seconds: float = 20) -> None:
    """Wait until so many are there: one whose k3dreg was killed ends by itself, a moment later."""
    end = time.monotonic() + seconds
    while len(helpers(docker)) != count:
        assert time.monotonic() < end, f"{len(helpers(docker))} helper containers are there, and not {count}"
        time.sleep(0.1)


class Place:
    """k3dreg as k3d makes a registry, in a network of the engine's, and its settings file."""

    def __init__(self, engine: rig.EngineAddress, made: Container, network: str, settings: Path) -> None:
        self.engine = engine
        self.docker = Docker(engine.socket)
        self.made = made
        self.network = network
        self._settings = settings

    def turn(self, on: bool) -> None:
        """Change the option, and let k3dreg read it."""
        self.write(on)
        self.docker.ask("POST", f"{self.made._path}/kill", signal="HUP")

    def write(self, on: bool) -> None:
        self._settings.write_text(f'link-layers = {str(on).lower()}\nlog-level = "debug"\n')

    @contextlib.contextmanager
    def node(self) -> Iterator[Node]:
        with kind_node(self.engine, self.network) as node:
            node.use_mirror(f"{self.made.address(self.network)}:5000")
            yield node

    def run(self, *words: str) -> str:
        """Return what a command in k3dreg's container prints, whatever its status.

        `docker exec` does not find the root directory of a container whose engine is in a plain chroot.
        """
        enter = ["nsenter", f"--target={self.made.inspect()['State']['Pid']}", "--mount", "--root", "--pid", "--net"]
        command = [*enter, "/opt/k3dreg/bin/k3dreg", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={"HOME": "/root"})
        print(done.stdout + done.stderr)
        return done.stdout + done.stderr


@pytest.fixture
def place(
    engine: rig.EngineAddress, docker: Docker, k3dreg_image: str, shared: tuple[Path, str], port: int
) -> Iterator[Place]:
    prepare_kind(engine)
    here, there = shared
    binds = [f"{engine.inner_socket}:{SOCKET}", f"{there}/k3dreg.toml:/etc/k3dreg/k3dreg.toml:ro"]
    with network(docker, f"k3d-{uuid.uuid4().hex[:8]}") as name:
        body = registry(k3dreg_image, "k3d-dev", name, binds, port=port)
        with container(docker, f"k3dreg-{uuid.uuid4().hex[:8]}", body) as made:
            place = Place(engine, made, name, here / "k3dreg.toml")
            place.write(False)
            yield place
            made.check_log()
    wait_for_helpers(docker, 0)


def as_pulled(engine: rig.EngineAddress, listing: list[str]) -> list[str]:
    """Return the listing of a linked image without what Docker's classic store leaves out of a layer's tar."""
    return listing if engine.containerd_store else [re.sub(r'"user.note": "31"', "", line) for line in listing]


@both_stores
def test_a_k3dreg_in_a_container_links_layers_while_the_option_is_on(place: Place, docker: Docker) -> None:
    made = place.made
    made.start()
    with rich_image(place.engine) as name:
        with place.node() as node:
            print(f"ordinary pull: {node.pull(name):.2f} s")
            expected = listing_of(node, name)
        assert helpers(docker) == []
        place.turn(True)
        print(made.wait_for(STARTED)[0])
        wait_for_helpers(docker, 1)
        with place.node() as node:
            begun = len(made.log())
            print(f"pull with linking: {node.pull(name):.2f} s")
            print(made.wait_for(LINKED)[0])
            assert len(blobs_sent(made.log()[begun:])) == 1  # the config
            assert as_pulled(place.engine, listing_of(node, name)) == expected
            assert "Active" not in snapshots(node).values()
            assert len(leases(node)) == 1
            assert re.search(r"layers can be linked into k3dreg-test-kind-", place.run("doctor"))
            build(place.engine, f"{name}:other", f"FROM {name}\nRUN echo {name} > /other\n")
            assert re.search(r"(linked 1 layer,|nothing to link)", place.run("link", f"{name}:other"))
            docker.remove(f"{name}:other")
        wait_for_helpers(docker, 1)  # that of the commands is gone
        place.turn(False)
        wait_for_helpers(docker, 0)
        place.turn(True)
        wait_for_helpers(docker, 1)
        status, seconds = made.stop()
        print(f"it stopped in {seconds:.2f} s")
        assert status in (0, 143)
        assert helpers(docker) == []


@both_stores
def test_a_kill_of_the_helper_or_of_k3dreg_is_no_harm(place: Place, docker: Docker) -> None:
    made = place.made
    place.write(True)
    made.start()
    made.wait_for(STARTED)
    with rich_image(place.engine) as name, place.node() as node:
        # The helper, in the midst of a linking.
        pulling = threading.Thread(target=node.pull, args=(name,))
        pulling.start()
        wait_for_linking(node)
        docker.ask("POST", f"/containers/{helpers(docker)[0]}/kill")
        pulling.join()
        made.wait_for("no layers are linked: the helper container has ended")
        expected = listing_of(node, name)
        # The next linking has another helper, which first removes what the killed one left.
        begun, end = len(made.log()), time.monotonic() + 60
        number = 0
        while "linked 1 layer" not in made.log()[begun:]:
            assert time.monotonic() < end, made.log()[begun:]
            number += 1
            build(place.engine, f"{name}:{number}", f"FROM {name}\nRUN echo {number} > /number\n")
            node.pull(f"{name}:{number}")
            time.sleep(0.5)
        assert "Active" not in snapshots(node).values()
        assert listing_of(node, name) == expected
        for each in range(1, number + 1):
            docker.remove(f"{name}:{each}")
        # k3dreg itself.
        wait_for_helpers(docker, 1)
        [before] = helpers(docker)
        made.kill()
        wait_for_helpers(docker, 0)
        made.start()
        made.wait_for(STARTED)
        assert before not in helpers(docker)
        made.stop()


def wait_for_linking(node: Node) -> None:
    """Wait until layers are being linked into the node."""
    end = time.monotonic() + 30
    while not leases(node):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of nobody's."""
    directory = Path(tempfile.mkdtemp(prefix="k3dreg-nobody-"))
    os.chown(directory, NOBODY, NOBODY)
    yield directory
    shutil.rmtree(directory)


@both_stores
def test_an_ordinary_user_of_dockers_machine_links_by_dockers_image_of_k3dreg(
    engine: rig.EngineAddress, docker: Docker, k3dreg_image: str, home: Path
) -> None:
    prepare_kind(engine)

    def link(*words: str) -> str:
        before = nobody.words(NOBODY, Path(engine.socket).stat().st_gid)
        command = [*before, *program(), "link", "--docker", engine.url, "--state-dir", str(home), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=home)
        print(done.stdout + done.stderr)
        return done.stdout + done.stderr

    with rich_image(engine) as name, kind_node(engine) as node:
        docker.remove("k3dreg:latest")
        assert "no helper container runs: Docker has no image k3dreg:latest" in link(name, node.name)
        docker.tag(k3dreg_image, "k3dreg", "latest")
        try:
            assert re.search(r"linked \d+ layers, [\d,]+ files", link(name, node.name))
        finally:
            docker.remove("k3dreg:latest")
        assert "Active" not in snapshots(node).values()
    assert helpers(docker) == []


# -- a real k3d -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Clusters]:
    rig.program("k3d")
    engine, pid = rig.bridged()
    machine = Clusters(engine, pid, tmp_path)
    machine.prepare()
    machine.clear()
    yield machine
    machine.clear()
    wait_for_helpers(machine.docker, 0)


def test_k3ds_registry_links_layers_into_the_nodes_of_its_clusters(cluster: Clusters) -> None:
    with shared_with(cluster.engine) as (here, there), rich_image(cluster.engine) as name:
        (here / "k3dreg.toml").write_text("link-layers = true\n")
        words = documented("k3d registry create registry.localhost")
        cluster.k3d(*words[1:], "--volume", f"{there}/k3dreg.toml:/etc/k3dreg/k3dreg.toml:ro")
        made = Container(cluster.docker, "k3d-registry.localhost")
        made.wait_for(STARTED)
        words = documented("k3d cluster create --config examples/k3d-separate/")
        cluster.k3d(*words[1:], *MORE, "--agents", "1")
        nodes = cluster.nodes("k3s-default")
        assert len(nodes) == 2
        for node in nodes.values():
            begun = len(made.log())
            print(f"pull with linking: {node.pull(name):.2f} s")
            found = made.wait_for(LINKED)
            assert found[4] in nodes
            assert len(blobs_sent(made.log()[begun:])) == 1
            assert len(listing_of(node, name)) > 1000
        made.check_log()
