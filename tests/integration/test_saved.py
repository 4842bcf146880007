"""The status page counts images that a node got without a pull of Docker's: images, as the node pulls them."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import pytest

from tests.integration.support import images
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.node import Node
from tests.integration.support.registry_client import RegistryClient
from tests.integration.support.rig import EngineAddress
from tests.integration.support.upstream import Upstream


def given_without_a_pull(daemon: Daemon) -> int:
    page = RegistryClient(daemon.host).ask("GET", "/", Accept="text/html").body.decode()
    found = re.search(r"(\d+) images? served without a pull", page)
    assert found is not None
    return int(found[1])


def of_several_platforms(upstream: Upstream, busybox: bytes, repository: str) -> None:
    manifests = []
    for architecture in ("amd64", "arm64"):
        layers = images.small_layers(busybox, f"{repository} {architecture}")
        manifests.append((upstream.push_image(repository, "", layers, images.COMMAND, architecture), architecture))
    upstream.push_index(repository, "1", manifests)


@pytest.mark.engines("docker29", "docker29-classic")
@pytest.mark.nodes("node", "node16")
@pytest.mark.parametrize("platforms", [1, 2])
def test_an_image_counts_once_and_not_when_docker_pulled_it_for_the_node(
    engine: EngineAddress, node: Node, platforms: int, upstream: Upstream, busybox: bytes, tmp_path: Path
) -> None:
    repository = f"k3dreg-test/saved-{uuid.uuid4()}"
    if platforms > 1:
        of_several_platforms(upstream, busybox, repository)
    else:
        upstream.push_image(repository, "1", images.small_layers(busybox, repository), images.COMMAND)
    name = f"{upstream.address}/{repository}:1"
    try:
        with running(engine, tmp_path) as daemon:
            node.use_mirror(daemon.host)
            node.pull(name)
            daemon.wait_for(rf"HEAD {name} 200.*after: pull ")
            daemon.wait_for(rf"GET {upstream.address}/{repository} blob ")
            assert given_without_a_pull(daemon) == 0
            for count in (1, 2):
                node.clean()
                node.pull(name)
                assert given_without_a_pull(daemon) == count
    finally:
        Docker(engine.socket).remove(name)
