"""A containerd node pulls what Docker holds, unpacks it, and runs it: every engine, every node."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.integration.conftest import PushedImage
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.images import VERDICT
from tests.integration.support.node import Node
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress, engines, unavailable


@pytest.fixture(scope="module")
def held(engine: EngineAddress, layered_image: PushedImage) -> Iterator[PushedImage]:
    """The image of over 200 MB, pulled by the engine from the registry."""
    docker = layered_image.pull_into(engine)
    yield layered_image
    docker.remove(layered_image.name)


@pytest.fixture(scope="module")
def began(engine: EngineAddress, held: PushedImage, daemon: Daemon) -> float:
    """When the first node was about to ask."""
    return time.time()


def test_a_node_pulls_and_runs_what_docker_holds(
    engine: EngineAddress, held: PushedImage, began: float, daemon: Daemon, node: Node
) -> None:
    assert not node.contents()
    node.use_mirror(daemon.host)
    seconds = node.pull(held.name)
    print(f"{node.name} pulled {held.name} from {engine.name} in {seconds:.1f} s")
    assert node.run(held.name).split("\n")[:2] == [held.message, VERDICT]
    if engine.containerd_store:
        assert node.digest(held.name) == held.manifest["digest"]
    # However many nodes asked, one export was enough.
    assert Docker(engine.socket).exports(began, time.time()) <= 1
    daemon.check_log()


def test_the_classic_store_gives_the_same_digest_in_every_version_and_after_a_restart(
    layered_image: PushedImage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    digests = []
    classic = [engine for engine in engines() if not engine.containerd_store]
    if len(classic) < 2:
        unavailable("there are not two engines with the classic store among K3DREG_TEST_ENGINES:")
    for engine in classic:
        layered_image.pull_into(engine)
        directory = tmp_path_factory.mktemp(engine.name)
        for again in (False, True):
            began = time.time()
            with running(engine, directory) as daemon:
                puller = Puller(daemon.host, layered_image.registry)
                digests.append(puller.manifest(layered_image.repository, layered_image.tag, "HEAD").digest)
            if again:
                # It found what the first one had kept.
                assert Docker(engine.socket).exports(began, time.time()) == 0
    assert len(set(digests)) == 1, digests
