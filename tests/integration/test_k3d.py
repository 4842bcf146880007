"""A real k3d makes clusters with k3dreg, by the README's commands and the examples' files; k3s is a stand-in."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sqlite3
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.support import image, rig
from tests.integration.support.clusters import (
    MORE,
    NODE_IMAGE,
    Clusters,
    documented,
    pull_as_kubelet_does,
    running_kind_node,
)
from tests.integration.support.daemon import program, running
from tests.integration.support.docker_api import Docker, DockerError
from tests.integration.support.images import printing
from tests.integration.support.k3d import Container, network
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
        dockerfile = (
            f"FROM scratch\nCOPY busybox message /\nCMD {json.dumps(printing('/message', '/busybox'))}\n".encode()
        )
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
    check_held(machine, app, directory)


def check_held(machine: Clusters, repository: str, directory: Path) -> None:
    """Check that no rule removes a tag that was pushed and pulled long ago, because nodes hold its image."""
    state = machine.docker.call("GET", f"/containers/{REGISTRY}/archive", query={"path": "/var/lib/k3dreg"})
    copy = directory / uuid.uuid4().hex
    with tarfile.open(fileobj=io.BytesIO(state)) as archive:
        archive.extractall(copy, [member for member in archive if "/pushed.db" in member.name])
    with contextlib.closing(sqlite3.connect(copy / "k3dreg/pushed.db")) as database, database:
        database.execute("UPDATE tag SET pushed=0, pulled=0")
    for engine, goes in (("unix:///nonexistent/docker.sock", True), (machine.engine.url, False)):
        done = subprocess.run(
            [*program(), "gc", "--state-dir", str(copy / "k3dreg"), "--retain", "*=1h", "--dry-run"],
            env={**os.environ, "DOCKER_HOST": engine},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (f"would remove {repository}:t:" in done.stdout) == goes, done.stdout


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


def test_a_cluster_that_exists_is_attached_and_detached(machine: Clusters, own: Own) -> None:
    engine = machine.engine
    machine.k3d("cluster", "create", "dev", *MORE, "--agents", "1")
    try:
        nodes = machine.nodes("dev")
        message, before = own.build(), {name: mirrors_of(node) for name, node in nodes.items()}
        for node in nodes.values():
            with pytest.raises(PullFailed):
                node.pull(own.name)
        image.client(engine, *documented("docker run -d --name k3dreg")[1:], stdin=b"")
        Container(machine.docker, "k3dreg").wait_for("listening on")
        command = documented("docker exec k3dreg")[1:]
        said = image.client(engine, *command, stdin=b"")
        assert said.count("pulls now go to http://k3dreg:5000 first") == 2, said
        own.check(nodes, message)
        attached = {name: mirrors_of(node) for name, node in nodes.items()}
        said = image.client(engine, *command, stdin=b"")
        assert said.count("already attached: pulls go to http://k3dreg:5000 first") == 2, said
        assert {name: mirrors_of(node) for name, node in nodes.items()} == attached
        # k3s writes its hosts.toml anew.
        machine.k3d("cluster", "stop", "dev")
        machine.k3d("cluster", "start", "dev", "--timeout", "120s")
        nodes = machine.nodes("dev")
        own.check(nodes, own.build())
        machine.k3d("node", "create", "later", "--cluster", "dev", "--image", NODE_IMAGE, "--timeout", "120s")
        later = {name: node for name, node in machine.nodes("dev").items() if name not in nodes}
        # k3d gives a new node the registries.yaml of another one.
        said = image.client(engine, "exec", "k3dreg", "k3dreg", "attach", stdin=b"")
        assert said.count("attached to http://k3dreg:5000") == 3, said
        own.check(later, own.build())
        said = image.client(engine, "exec", "k3dreg", "k3dreg", "detach", "dev", stdin=b"")
        assert said.count("its mirrors are what they were before") == 3, said
        assert "k3dreg left the network k3d-dev" in said
        for name, node in nodes.items():
            assert mirrors_of(node) == before[name]
            node.clean()
            with pytest.raises(PullFailed):
                node.pull(own.name)
        Container(machine.docker, "k3dreg").check_log()
        machine.k3d("cluster", "delete", "dev")
        assert "k3d-dev" not in [network["Name"] for network in machine.docker.ask("GET", "/networks")]
    finally:
        remove(machine, "k3dreg")
        machine.clear()


def test_clusters_are_attached_as_they_start(machine: Clusters, own: Own) -> None:
    words = ("-d", "--name", "k3dreg", "-v", "/var/run/docker.sock:/var/run/docker.sock", "k3dreg")
    image.client(machine.engine, "run", *words, "k3dreg", "--attach", "d*", stdin=b"")
    container = Container(machine.docker, "k3dreg")
    try:
        container.wait_for("listening on")
        machine.k3d("cluster", "create", "dev", *MORE, "--agents", "1")
        machine.k3d("cluster", "create", "other", *MORE)
        container.wait_for("k3d-dev-agent-0 is attached to http://k3dreg:5000")
        own.check(machine.nodes("dev"), own.build())
        with pytest.raises(PullFailed):
            machine.nodes("other")["k3d-other-server-0"].pull(own.name)
        # The mirrors are there after k3s has started, whichever was first.
        machine.k3d("cluster", "stop", "dev")
        container.wait_for("left the network k3d-dev")
        machine.k3d("cluster", "start", "dev", "--timeout", "120s")
        own.check(machine.nodes("dev"), own.build())
        left = container.log().count("left the network k3d-dev")
        machine.k3d("cluster", "delete", "dev")
        # k3d removes the network, or if it is faster than k3dreg, the user can: nothing is in it any more.
        container.wait_for("(?s)" + ".*".join(["left the network k3d-dev"] * (left + 1)))
        if "k3d-dev" in [network["Name"] for network in machine.docker.ask("GET", "/networks")]:
            machine.docker.ask("DELETE", "/networks/k3d-dev")
        container.check_log()
    finally:
        remove(machine, "k3dreg")
        machine.clear()


def test_a_node_of_kind_is_attached(machine: Clusters, own: Own) -> None:
    words = ("-d", "--name", "k3dreg", "-v", "/var/run/docker.sock:/var/run/docker.sock", "k3dreg")
    image.client(machine.engine, "run", *words, stdin=b"")
    try:
        Container(machine.docker, "k3dreg").wait_for("listening on")
        message = own.build()
        with network(machine.docker, "kind"), running_kind_node(machine.docker, "kind") as node:
            file = node.address.chroot / "etc/containerd/certs.d/_default/hosts.toml"
            mine = '# mine\nserver = "http://127.0.0.1:1"\n'
            file.parent.mkdir(parents=True)
            file.write_text(mine)
            file.chmod(0o600)
            with pytest.raises(PullFailed):
                node.pull(own.name)
            said = image.client(machine.engine, "exec", "k3dreg", "k3dreg", "attach", "kind", stdin=b"")
            assert "pulls now go to http://k3dreg:5000 first" in said
            own.check({node.name: node}, message)
            assert (mine in file.read_text(), file.stat().st_mode & 0o777) == (True, 0o600)
            image.client(machine.engine, "exec", "k3dreg", "k3dreg", "detach", "kind", stdin=b"")
            assert (file.read_text(), file.stat().st_mode & 0o777) == (mine, 0o600)
            node.clean()
            with pytest.raises(PullFailed):
                node.pull(own.name)
        with network(machine.docker, "kind"), running_kind_node(machine.docker, "kind", "") as node:

            def changes() -> set[str]:
                return {each["Path"] for each in machine.docker.ask("GET", f"/containers/{node.name}/changes")}

            told = changes()
            command = ("exec", "k3dreg", "sh", "-c", "k3dreg attach kind; echo status $?")
            said = image.client(machine.engine, *command, stdin=b"")
            assert "its containerd has no config_path" in said
            assert "status 1" in said
            assert changes() == told
    finally:
        remove(machine, "k3dreg")


def test_a_k3dreg_on_the_host_is_found_by_the_networks_gateway(machine: Clusters, own: Own, tmp_path: Path) -> None:
    machine.k3d("cluster", "create", "dev", *MORE)
    try:
        nodes = machine.nodes("dev")
        before = {name: mirrors_of(node) for name, node in nodes.items()}
        inside = ["nsenter", f"--target={machine.pid}", "--net"]

        def attach(*listen: str) -> tuple[int, str]:
            command = [*inside, *program(), "attach", "--docker", machine.engine.url, "--listen", *listen, "dev"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            return done.returncode, done.stdout + done.stderr

        with running(machine.engine, tmp_path, "--listen", "tcp:5017:interface=127.0.0.1", before=inside):
            status, said = attach("tcp:5017:interface=127.0.0.1")
            assert (status, "loopback address only" in said) == (1, True), said
            assert {name: mirrors_of(node) for name, node in nodes.items()} == before
        with running(machine.engine, tmp_path, "--listen", "tcp:5017", before=inside):
            status, said = attach("tcp:5017")
            assert status == 0, said
            assert re.search(r"pulls now go to http://172\.\d+\.\d+\.1:5017 first", said)
            own.check(nodes, own.build())
    finally:
        machine.clear()


def mirrors_of(node: Node) -> dict[str, str]:
    """The files that give a node of k3d its mirrors."""
    root = node.address.chroot
    files = [
        root / "etc/rancher/k3s/registries.yaml",
        *root.glob("var/lib/rancher/k3s/agent/etc/containerd/certs.d/*/*"),
    ]
    return {str(file.relative_to(root)): file.read_text() for file in files if file.exists()}


def remove(machine: Clusters, name: str) -> None:
    """Remove a container, and the volume that the README gives it."""
    for path in (f"/containers/{name}", f"/volumes/{name}"):
        with contextlib.suppress(DockerError):
            machine.docker.ask("DELETE", path, force="1")


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
