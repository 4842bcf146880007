"""Images of which Docker has lost blobs (moby#49473): made so on real engines, and mended, or explained."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attrs import evolve

from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.images import COMMAND, VERDICT, small_layers
from tests.integration.support.losing import exported, lose_blobs
from tests.integration.support.node import Node
from tests.integration.support.private import (
    Door,
    PrivateUpstream,
    SmallImage,
    manifest_path,
    push_small_image,
    request,
    retag,
)
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress
from tests.integration.support.upstream import Upstream

pytestmark = pytest.mark.engines("docker29", "docker26")


def image_ids(docker: Docker) -> set[str]:
    """All images that the engine has, those without a name too."""
    return {each["Id"] for each in json.loads(docker.call("GET", "/images/json", query={"all": "1"}))}


@pytest.fixture
def docker(engine: EngineAddress) -> Docker:
    return Docker(engine.socket)


@pytest.fixture
def image(upstream: Upstream, docker: Docker) -> Iterator[SmallImage]:
    image = push_small_image(upstream, "missing")
    yield image
    docker.remove(image.name)


def ask(daemon: Daemon, image: SmallImage, authorization: str = "") -> tuple[int, str, str]:
    """Status, digest, and what the error says."""
    headers = {"Authorization": authorization} if authorization else {}
    response, body = request(daemon.host, "GET", manifest_path(image), headers)
    said = "" if response.status == 200 else json.dumps(json.loads(body)["errors"])
    return response.status, response.headers.get("Docker-Content-Digest", ""), said


def test_what_was_lost_is_fetched_again_though_the_tag_has_moved_upstream(
    engine: EngineAddress, docker: Docker, upstream: Upstream, image: SmallImage, tmp_path: Path
) -> None:
    lose_blobs(docker, image)
    assert retag(upstream, image.repository) != image.digest
    before = image_ids(docker) | {image.digest}  # Docker 26 does not list one that it has in part
    with running(engine, tmp_path) as daemon, ThreadPoolExecutor(4) as clients:
        answers = clients.map(lambda _: ask(daemon, image)[:2], range(4))
        assert set(answers) == {(200, image.digest)}
        assert Puller(daemon.host, image.registry).image(image.repository, "1") > 400_000
        # Docker 26 cannot build without a session.
        how = "by a build from" if engine.name == "docker29" else "with 2 blobs from"
        daemon.wait_for(f"is whole again, {how}")
        # It has been mended for good: Docker itself gives all of it.
        assert exported(docker, image.name) > 400_000
        assert daemon.log().count("is repairing it") == 1
    # Nothing is left over: no image that a build made, no name that a load gave.
    assert image_ids(docker) == before
    images = json.loads(docker.call("GET", "/images/json", query={"all": "1"}))
    names = {name for each in images for name in each["RepoTags"] or []}
    assert {name for name in names if "k3dreg-repair" in name or image.repository in name} == {image.name}


@pytest.mark.nodes("node")
def test_of_an_image_for_several_platforms_the_one_that_docker_holds_and_a_node_runs_it(
    engine: EngineAddress, docker: Docker, upstream: Upstream, busybox: bytes, node: Node, tmp_path: Path
) -> None:
    repository = f"k3dreg-missing-{uuid.uuid4().hex[:12]}"
    platforms = []
    for architecture in ("amd64", "arm64"):
        # No other image has these layers: the blobs of another one would be found.
        layers = small_layers(busybox + os.urandom(100), f"mended for {architecture}")
        descriptor = upstream.push_image(repository, architecture, layers, COMMAND, architecture)
        platforms.append((descriptor, architecture))
    digest = upstream.push_index(repository, "1", platforms)["digest"]
    image = SmallImage(upstream.address, repository, digest)
    try:
        lose_blobs(docker, image)
        with running(engine, tmp_path) as daemon:
            node.use_mirror(daemon.host)
            node.pull(image.name)
            assert node.digest(image.name) == digest
            assert node.run(image.name).split("\n")[:2] == ["mended for amd64", VERDICT]
            daemon.wait_for("is whole again")
    finally:
        docker.remove(image.name)


def test_of_a_private_image_with_the_clients_credentials(
    engine: EngineAddress, docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from k3dreg.formats.basic_auth import Credentials, registry_auth

    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    private = PrivateUpstream()
    image = push_small_image(private, "missing")
    login = registry_auth(Credentials(private.username, private.password), image.registry)
    try:
        lose_blobs(docker, image, login)
        with running(engine, tmp_path) as daemon:
            status, _, said = ask(daemon, image)
            assert status == 401, said
            assert ask(daemon, image, private.authorization)[:2] == (200, image.digest)
            assert Puller(daemon.host, image.registry).image(image.repository, "1") > 400_000
            assert exported(docker, image.name) > 400_000
            assert private.authorization.split()[1] not in daemon.log()
            assert login not in daemon.log()
    finally:
        docker.remove(image.name)


def test_what_cannot_be_mended_is_a_404_in_time_and_the_log_says_what_to_do(
    engine: EngineAddress, docker: Docker, upstream: Upstream, tmp_path: Path
) -> None:
    with Door(upstream.address) as door:
        image = evolve(push_small_image(upstream, "missing"), registry=door.address)
        lose_blobs(docker, image)
    try:
        with running(engine, tmp_path) as daemon:
            status, said = 0, ""
            for _ in range(3):
                began = time.monotonic()
                status, _, said = ask(daemon, image)
                assert time.monotonic() - began < 25
                assert status in (404, 503)  # 503: still at it
            assert status == 404
            for words in ("moby#49473", "containerd#8973", "content fetch"):
                assert words in said
                daemon.wait_for(words)
            assert daemon.log().count("is repairing it") == 1
    finally:
        docker.remove(image.name)
