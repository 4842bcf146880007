"""Mirrors that are asked with the registry in the path: by nodes with `override_path`, by Podman and CRI-O."""

from __future__ import annotations

import os
import random
import shlex
import socket
import socketserver
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.support import rig
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.node import Node
from tests.integration.support.one_file import content_of, from_registry, publish
from tests.integration.support.registry_client import RegistryClient

pytestmark = pytest.mark.engines("docker29")


@pytest.fixture
def repository() -> str:
    return f"in-path/{uuid.uuid4().hex[:12]}"


def pump(source: socket.socket, target: socket.socket) -> None:
    """Copy until the source ends."""
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


class Forward(socketserver.BaseRequestHandler):
    """A connection to the upstream registry."""

    def handle(self) -> None:
        host, _, port = rig.setting("K3DREG_TEST_REGISTRY").rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            back = threading.Thread(target=pump, args=(there, self.request))
            back.start()
            pump(self.request, there)
            back.join()


@pytest.fixture
def without_port() -> Iterator[str]:
    """The upstream registry as a host without a port, for Podman: no port may be in the path of an image's name."""
    address = f"127.{random.randrange(1, 255)}.{random.randrange(255)}.9"
    with socketserver.ThreadingTCPServer((address, 80), Forward) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield address
        server.shutdown()
        serving.join()


def test_a_node_with_override_path(engine: rig.EngineAddress, daemon: Daemon, node: Node, repository: str) -> None:
    """`/v2/localhost:5000/app/…?ns=localhost:5000`: the registry twice."""
    registry, content = rig.setting("K3DREG_TEST_REGISTRY"), os.urandom(100_000)
    digest, _ = publish(registry, repository, content)
    name = f"localhost:{registry.rpartition(':')[2]}"
    directory = node.address.directory / "certs.d" / (name.replace(":", "_") + "_")
    directory.mkdir()
    try:
        (directory / "hosts.toml").write_text(
            f'server = "http://127.0.0.1:1"\n[host."http://{daemon.host}/v2/{name}"]\n'
            '  capabilities = ["pull", "resolve"]\n  override_path = true\n'
        )
        node.pull(f"{name}/{repository}:t")
        assert node.digest(f"{name}/{repository}:t") == digest
        daemon.wait_for(f"HEAD {name}/{repository}:t 200")
    finally:
        (directory / "hosts.toml").unlink()
        directory.rmdir()
        Docker(engine.socket).remove(f"{name}/{repository}:t")


@pytest.fixture
def allowing(engine: rig.EngineAddress, without_port: str, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that may ask this machine's registry by the name that Docker has no image of."""
    with running(engine, tmp_path, "--allow-registry", "*", "--allow-registry", without_port) as daemon:
        yield daemon


def test_a_mirror_of_podmans(engine: rig.EngineAddress, allowing: Daemon, repository: str, without_port: str) -> None:
    """`/v2/registry.example/app/…`: CRI-O reads the same file with the same library, and kaniko asks so, too."""
    content = os.urandom(100_000)
    publish(rig.setting("K3DREG_TEST_REGISTRY"), repository, content)
    text = (
        f'[[registry]]\nprefix = "registry.example"\nlocation = "127.0.0.1:1"\ninsecure = true\n'
        f'[[registry.mirror]]\nlocation = "{allowing.host}/{without_port}"\ninsecure = true\n'
    )
    tools = shlex.split(rig.setting("K3DREG_TEST_DOCKER"))[:-1]
    command = (
        "f=$(mktemp) && cat > $f && export CONTAINERS_REGISTRIES_CONF=$f && s=0;"
        f" podman pull -q registry.example/{repository}:t || s=1; podman rmi -f registry.example/{repository}:t; rm $f;"
        " exit $s"
    )
    try:
        done = subprocess.run(
            [*tools, "sh", "-c", command], input=text.encode(), capture_output=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr.decode() + allowing.log()[-2000:]
    finally:
        Docker(engine.socket).remove(f"{without_port}/{repository}:t")


def test_a_port_in_the_path(engine: rig.EngineAddress, daemon: Daemon, repository: str) -> None:
    registry, content = rig.setting("K3DREG_TEST_REGISTRY"), os.urandom(100_000)
    publish(registry, repository, content)
    try:
        client = RegistryClient(daemon.host)
        assert content_of(from_registry(client, f"{registry}/{repository}"), "t") == content
        assert client.begin(f"{registry}/{repository}").status == 400
    finally:
        Docker(engine.socket).remove(f"{registry}/{repository}:t")
