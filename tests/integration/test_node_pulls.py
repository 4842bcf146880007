"""A containerd node pulls what Docker holds, unpacks it, and runs it: every engine, every node."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import EXPORTS_ONLY, PushedImage
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.images import VERDICT
from tests.integration.support.node import Node
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress, engines, nodes, unavailable


@pytest.fixture(scope="module")
def held(engine: EngineAddress, layered_image: PushedImage) -> Iterator[PushedImage]:
    """The image of over 100 MB, pulled by the engine from the registry."""
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


def test_a_node_pulls_and_runs_an_export(engine: EngineAddress, held: PushedImage, tmp_path: Path) -> None:
    """One node is enough: what nodes see of it is the same."""
    address = nodes()[0]
    node = Node(address)
    node.clean()
    began = time.time()
    with running(engine, tmp_path, *EXPORTS_ONLY) as daemon:
        node.use_mirror(daemon.host)
        seconds = node.pull(held.name)
        print(f"{node.name} pulled {held.name} as an export from {engine.name} in {seconds:.1f} s")
        assert node.run(held.name).split("\n")[:2] == [held.message, VERDICT]
        if engine.containerd_store:
            assert node.digest(held.name) == held.manifest["digest"]
    node.clean()
    assert Docker(engine.socket).exports(began, time.time()) == 1


@pytest.mark.engines("docker29", "docker29-classic", "docker20")
def test_a_node_pulls_and_runs_what_is_read_in_place(engine: EngineAddress, held: PushedImage, tmp_path: Path) -> None:
    address = nodes()[0]
    node = Node(address)
    node.clean()
    began = time.time()
    # The engine lives in another root directory; its own is beside its socket.
    options = ("--reader", "off", "--docker-root", str(engine.directory / "data"))
    with running(engine, tmp_path, *options) as daemon:
        node.use_mirror(daemon.host)
        node.pull(held.name)
        assert node.run(held.name).split("\n")[:2] == [held.message, VERDICT]
    node.clean()
    assert Docker(engine.socket).exports(began, time.time()) == 0


def test_the_classic_store_gives_the_same_digest_in_every_version_from_every_source_and_after_a_restart(
    layered_image: PushedImage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    digests = {}
    classic = [engine for engine in engines() if not engine.containerd_store]
    if len(classic) < 2:
        unavailable("there are not two engines with the classic store among K3DREG_TEST_ENGINES:")
    for engine in classic:
        layered_image.pull_into(engine)
        for source, options in {"files": (), "exports": EXPORTS_ONLY}.items():
            directory = tmp_path_factory.mktemp(f"{engine.name}-{source}")
            for again in (False, True):
                began = time.time()
                with running(engine, directory, *options) as daemon:
                    puller = Puller(daemon.host, layered_image.registry)
                    answer = puller.manifest(layered_image.repository, layered_image.tag, "HEAD")
                digests[engine.name, source, again] = answer.digest
                if again:
                    # It found what the first one had kept.
                    assert Docker(engine.socket).exports(began, time.time()) == 0
            shutil.rmtree(directory / "state")
    assert len(set(digests.values())) == 1, digests
