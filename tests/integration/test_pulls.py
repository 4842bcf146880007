"""What a node asks for one image is one pull, in the log and on the status page."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import pytest

from tests.integration.support import images
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.node import Node, PullFailed
from tests.integration.support.registry_client import RegistryClient
from tests.integration.support.rig import EngineAddress
from tests.integration.support.upstream import Upstream

pytestmark = [pytest.mark.engines("docker29", "docker29-classic"), pytest.mark.nodes("node", "node16")]


def pulls_on_page(daemon: Daemon) -> list[str]:
    """Return the text of each pull on the page, with its requests, the last one first."""
    page = RegistryClient(daemon.host).ask("GET", "/", Accept="text/html").body.decode()
    return [re.sub(r"<[^>]*>", "", each) for each in re.findall(r'<details id="pull-\d+">(.*?)</details>', page, re.S)]


def test_a_nodes_pulls_are_listed_one_by_one(
    engine: EngineAddress, node: Node, upstream: Upstream, busybox: bytes, tmp_path: Path
) -> None:
    repository = f"k3dreg-test/pulls-{uuid.uuid4()}"
    layers = images.small_layers(busybox, repository)
    upstream.push_image(repository, "1", layers, images.COMMAND)
    more = images.LayerMaker({})
    more.file("more", images.noise(100_000, repository))
    upstream.push_image(repository, "2", [*layers, more.layer(None)], images.COMMAND)
    name = f"{upstream.address}/{repository}"
    try:
        with running(engine, tmp_path) as daemon:
            node.use_mirror(daemon.host)
            node.pull(f"{name}:1")
            count = len(layers)
            daemon.wait_for(rf"{name}:1 to 127.0.0.1: {count} layers sent \([\d.]+ [kM]B\), [\d.]+ s\n")
            # The node has all but the last layer of this one.
            node.pull(f"{name}:2")
            daemon.wait_for(
                rf"{name}:2 to 127.0.0.1: 1 layer sent \([\d.]+ kB\), {count} there already, [\d.]+ s\n", seconds=60
            )
            # And all of it now.
            node.pull(f"{name}:2")
            daemon.wait_for(rf"{name}:2 to 127.0.0.1: nothing to send, [\d.]+ s\n", seconds=60)
            again, second, first = pulls_on_page(daemon)
            assert f"{name}:1" in first
            assert (first.count("HEAD"), first.count(" blob ")) == (1, count + 1)
            assert (second.count("HEAD"), second.count(" blob ")) == (1, 2)
            assert again.count("HEAD") == 1
            # Each request is in one of them.
            asked = re.findall(r" (?:HEAD|GET) \S+ ", "".join((again, second, first)))
            assert len(asked) == len(re.findall(rf"127.0.0.1 (?:HEAD|GET) {name}", daemon.log()))
    finally:
        for tag in "12":
            Docker(engine.socket).remove(f"{name}:{tag}")


def test_a_pull_that_fails_is_one_with_its_reason(
    engine: EngineAddress, node: Node, upstream: Upstream, tmp_path: Path
) -> None:
    name = f"{upstream.address}/k3dreg-test/nowhere-{uuid.uuid4()}:1"
    with running(engine, tmp_path) as daemon:
        node.use_mirror(daemon.host)
        with pytest.raises(PullFailed):
            node.pull(name)
        found = daemon.wait_for(rf"{name} to 127.0.0.1: (failed after [\d.]+ s with 404: .+)\n", seconds=60)
        [pull] = pulls_on_page(daemon)
        assert found[1].split("&")[0].split("'")[0].split('"')[0] in pull
