"""`--origin-fallback`: what Docker cannot give comes from the image's own registry, and stays."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.images import COMMAND, VERDICT, small_layers
from tests.integration.support.node import Node
from tests.integration.support.private import (
    Door,
    PrivateUpstream,
    SmallImage,
    manifest_path,
    push_small_image,
    request,
)
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress
from tests.integration.support.upstream import Upstream

FALLBACK = "--origin-fallback"


@pytest.fixture
def image(engine: EngineAddress, upstream: Upstream) -> Iterator[SmallImage]:
    """An image behind a door of its own."""
    with Door(upstream.address) as door:
        image = evolve(push_small_image(upstream, "origin"), registry=door.address)
        yield image
    Docker(engine.socket).remove(image.name)


def status(daemon: Daemon, image: SmallImage, reference: str, authorization: str = "") -> int:
    headers = {"Authorization": authorization} if authorization else {}
    return request(daemon.host, "GET", manifest_path(image, reference), headers)[0].status


@pytest.mark.engines("docker29-classic", "docker26-classic", "docker20")
def test_a_digest_on_the_classic_store_is_a_404_with_advice_without_it(
    engine: EngineAddress, image: SmallImage, tmp_path: Path
) -> None:
    Docker(engine.socket).pull(f"{image.registry}/{image.repository}", "1")
    with running(engine, tmp_path) as daemon:
        assert status(daemon, image, image.digest) == 404
        daemon.wait_for("containerd image store", seconds=5)


@pytest.mark.engines("docker26-classic", "docker20")
def test_with_it_the_image_is_there_by_digest_and_again_when_the_registry_is_gone(
    engine: EngineAddress, upstream: Upstream, tmp_path: Path
) -> None:
    with Door(upstream.address) as door:
        image = evolve(push_small_image(upstream, "origin"), registry=door.address)
        with running(engine, tmp_path, FALLBACK) as daemon:
            assert Puller(daemon.host, image.registry).image(image.repository, image.digest) > 400_000
    # The registry is closed now, and the daemon is another.
    with running(engine, tmp_path, FALLBACK) as daemon:
        assert Puller(daemon.host, image.registry).image(image.repository, image.digest) > 400_000
        assert "fetched" not in daemon.log()


@pytest.mark.engines("docker29-classic")
@pytest.mark.nodes("node")
def test_a_node_pulls_and_runs_by_digest_what_the_classic_store_does_not_keep_also_without_the_registry(
    engine: EngineAddress, upstream: Upstream, busybox: bytes, node: Node, tmp_path: Path
) -> None:
    repository = f"k3dreg-origin-{uuid.uuid4().hex[:12]}"
    message = "found where it comes from"
    digest = upstream.push_image(repository, "1", small_layers(busybox, message), COMMAND)["digest"]
    with Door(upstream.address) as door:
        name = f"{door.address}/{repository}@{digest}"
        with running(engine, tmp_path, FALLBACK) as daemon:
            node.use_mirror(daemon.host)
            node.pull(name)
            assert node.digest(name) == digest
            assert node.run(name).split("\n")[:2] == [message, VERDICT]
    node.clean()
    with running(engine, tmp_path, FALLBACK) as daemon:
        node.use_mirror(daemon.host)
        node.pull(name)
        assert node.run(name).split("\n")[:2] == [message, VERDICT]


@pytest.mark.engines("docker29-classic")
def test_a_private_one_takes_the_clients_credentials(
    engine: EngineAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    private = PrivateUpstream()
    image = push_small_image(private, "origin")
    with running(engine, tmp_path, FALLBACK) as daemon:
        response, _ = request(daemon.host, "GET", manifest_path(image, image.digest))
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Basic")
        assert status(daemon, image, image.digest, private.authorization) == 200
        assert Puller(daemon.host, image.registry).image(image.repository, image.digest) > 400_000
        assert private.authorization.split()[1] not in daemon.log()
