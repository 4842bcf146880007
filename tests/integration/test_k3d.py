"""A real k3d makes clusters with k3dreg, by the README's commands and the examples' files; k3s is a stand-in."""

from __future__ import annotations

import io
import os
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.support import rig
from tests.integration.support.clusters import MORE, NODE_IMAGE, Clusters, documented, pull_as_kubelet_does
from tests.integration.support.docker_api import Docker
from tests.integration.support.k3d import Container
from tests.integration.support.node import Node, PullFailed
from tests.integration.support.one_file import Fetch, content_of, layout

# What the examples call the registry, and its name and ports in nodes.
REGISTRY = "k3d-registry.localhost"
NAMES = ("localhost:5005", f"{REGISTRY}:5005", f"{REGISTRY}:5000")
DEFAULT = "k3s-default"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    rig.program("k3d")
    engine, pid = rig.bridged()
    machine = Clusters(engine, pid, tmp_path_factory.mktemp("k3d"))
    machine.prepare()
    machine.clear()
    yield machine
    machine.clear()


class Own:
    """An image that was built, and never pushed, with a name of no registry."""

    def __init__(self, docker: Docker, busybox: bytes) -> None:
        self._docker, self._busybox = docker, busybox
        self.name = f"k3dreg-test-own-{uuid.uuid4().hex[:8]}"

    def build(self) -> str:
        """`docker build`; returns what a container of it prints."""
        message = uuid.uuid4().hex
        dockerfile = b'FROM scratch\nCOPY busybox message /\nCMD ["/busybox", "cat", "/message"]\n'
        files = {"Dockerfile": dockerfile, "busybox": self._busybox, "message": message.encode()}
        self._docker.build(self.name, files)
        return message

    def check(self, nodes: dict[str, Node], message: str) -> None:
        """Check that each node pulls it and runs it as it is now."""
        assert nodes
        for node in nodes.values():
            pull_as_kubelet_does(node, self.name)
            assert node.run(f"docker.io/library/{self.name}:latest") == message, node.name


@pytest.fixture
def own(machine: Clusters, busybox: bytes) -> Iterator[Own]:
    own = Own(machine.docker, busybox)
    yield own
    machine.docker.remove(own.name)


def from_node(node: Node) -> Fetch:
    return lambda kind, reference: node.content(reference)


def check_pushed(machine: Clusters, nodes: dict[str, Node], directory: Path) -> None:
    """Push to the port that k3d published; every node pulls that by each of the registry's names."""
    content, app = os.urandom(100_000), f"pushed-{uuid.uuid4().hex[:8]}"
    with tarfile.open(fileobj=io.BytesIO(layout(content))) as archive:
        archive.extractall(directory / app)
    machine.run(rig.program("crane"), "push", "--insecure", str(directory / app), f"localhost:5005/{app}:t")
    for node in nodes.values():
        for name in NAMES:
            image = f"{name}/{app}:t"
            pull_as_kubelet_does(node, image)
            assert content_of(from_node(node), node.digest(image)) == content


def test_a_registry_that_is_created_with_its_cluster(machine: Clusters, own: Own, tmp_path: Path) -> None:
    words = documented("k3d cluster create --config examples/k3d-created/")
    machine.k3d(*words[1:], *MORE, "--agents", "1")
    try:
        nodes = machine.nodes(DEFAULT)
        assert len(nodes) == 2
        own.check(nodes, own.build())
        own.check(nodes, own.build())
        check_pushed(machine, nodes, tmp_path)
        # k3d starts this registry when the nodes run, so a node may ask before it answers.
        first = next(iter(nodes.values()))
        message = own.build()
        machine.docker.ask("POST", f"/containers/{REGISTRY}/stop", t="10")
        with pytest.raises(PullFailed):
            first.pull(own.name)
        machine.docker.ask("POST", f"/containers/{REGISTRY}/start")
        own.check(nodes, message)
        machine.k3d("cluster", "stop", DEFAULT)
        machine.k3d("cluster", "start", DEFAULT, "--timeout", "120s")
        nodes = machine.nodes(DEFAULT)
        assert len(nodes) == 2
        own.check(nodes, own.build())
        machine.k3d("node", "create", "later", "--cluster", DEFAULT, "--image", NODE_IMAGE, "--timeout", "120s")
        later = {name: node for name, node in machine.nodes(DEFAULT).items() if name not in nodes}
        assert len(later) == 1
        own.check(later, own.build())
        check_pushed(machine, later, tmp_path)
        Container(machine.docker, REGISTRY).check_log()
    finally:
        machine.clear()


def test_two_clusters_use_a_registry_that_was_there_before(machine: Clusters, own: Own, tmp_path: Path) -> None:
    machine.k3d(*documented("k3d registry create registry.localhost")[1:])
    words = documented("k3d cluster create --config examples/k3d-separate/")
    try:
        machine.k3d(*words[1:], *MORE, "--agents", "1")
        machine.k3d(*words[1:3], "second", *words[3:], *MORE)
        for name, count in ((DEFAULT, 2), ("second", 1)):
            nodes = machine.nodes(name)
            assert len(nodes) == count
            own.check(nodes, own.build())
            own.check(nodes, own.build())
            check_pushed(machine, nodes, tmp_path)
        # The registry stays when a cluster goes.
        machine.k3d("cluster", "delete", DEFAULT)
        own.check(machine.nodes("second"), own.build())
        Container(machine.docker, REGISTRY).check_log()
    finally:
        machine.clear()
