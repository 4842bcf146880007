"""Which image a name means: only upstream, built here, built anew, one platform of an index, nowhere at all."""

from __future__ import annotations

import json
import subprocess
import time
import uuid

import pytest

from tests.integration.conftest import PushedImage
from tests.integration.support import images, rig
from tests.integration.support.daemon import Daemon
from tests.integration.support.docker_api import Docker, build_context
from tests.integration.support.images import VERDICT, printing
from tests.integration.support.node import Node, PullFailed
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress
from tests.integration.support.upstream import Json, Upstream

MY_IMAGE = "docker.io/library/my-image:latest"


def test_docker_pulls_what_only_the_registry_has(
    engine: EngineAddress, daemon: Daemon, mirrored: Node, small_image: PushedImage
) -> None:
    docker = small_image.remove_from(engine)
    assert docker.inspect(small_image.name) is None
    mirrored.pull(small_image.name)
    assert mirrored.run(small_image.name).split("\n")[:2] == [small_image.message, VERDICT]
    assert docker.inspect(small_image.name) is not None
    daemon.check_log()


def test_an_image_that_is_nowhere_is_a_404_and_the_node_says_not_found(
    engine: EngineAddress, daemon: Daemon, mirrored: Node, upstream: Upstream
) -> None:
    answer = Puller(daemon.host, upstream.address).manifest("k3dreg-test/nowhere", "1")
    assert answer.status == 404, answer.body
    assert answer.json["errors"][0]["code"] in ("MANIFEST_UNKNOWN", "NAME_UNKNOWN")
    with pytest.raises(PullFailed):
        mirrored.pull(f"{upstream.address}/k3dreg-test/nowhere:1")
    unknown = "sha256:" + "0" * 64
    started = time.monotonic()
    assert Puller(daemon.host, upstream.address).manifest("k3dreg-test/nowhere", unknown).status == 404
    assert time.monotonic() - started < 5
    daemon.check_log()


def test_an_image_built_here_is_pulled_under_its_name_and_a_rebuilt_one_is_fresh(
    engine: EngineAddress, daemon: Daemon, mirrored: Node, busybox: bytes
) -> None:
    docker = Docker(engine.socket)
    dockerfile = (
        b"FROM scratch\nCOPY busybox /bin/busybox\nCOPY message /message\nCMD "
        + json.dumps(printing("/message")).encode()
    )
    try:
        for message in ("first", "second"):
            unique = f"{message} {uuid.uuid4()}"
            docker.build("my-image:latest", {"Dockerfile": dockerfile, "busybox": busybox, "message": unique.encode()})
            mirrored.pull(MY_IMAGE)
            assert mirrored.run(MY_IMAGE) == unique
    finally:
        docker.remove("my-image:latest")
    daemon.check_log()


def test_an_image_tagged_over_is_fresh(engine: EngineAddress, daemon: Daemon, small_image: PushedImage) -> None:
    docker = small_image.pull_into(engine)
    puller = Puller(daemon.host, "docker.io")
    try:
        docker.tag(small_image.name, "my-tag", "1")
        first = puller.manifest("library/my-tag", "1").digest
        docker.build("my-other-image:latest", {"Dockerfile": b"FROM " + small_image.name.encode() + b"\nLABEL a=b\n"})
        docker.tag("my-other-image:latest", "my-tag", "1")
        second = puller.manifest("library/my-tag", "1").digest
        assert first != second
        assert puller.image("library/my-tag", "1") > 0
    finally:
        docker.remove("my-tag:1")
        docker.remove("my-other-image:latest")


# The Docker client of the tests lives with these engines.
@pytest.mark.engines("docker29", "docker29-classic")
def test_an_image_that_buildkit_built_is_pulled(
    daemon: Daemon, engine: EngineAddress, mirrored: Node, busybox: bytes
) -> None:
    """BuildKit's images carry an attestation beside the platform's manifest where the store can keep one."""
    client = rig.setting("K3DREG_TEST_DOCKER").split()
    socket = engine.inner_socket
    message = str(uuid.uuid4())
    dockerfile = f"FROM scratch\nCOPY . /bin/\nCMD {json.dumps(printing('/bin/message'))}\n".encode()
    context = build_context({"Dockerfile": dockerfile, "busybox": busybox, "message": message.encode()})
    command = [*client, "-H", f"unix://{socket}", "build", "-q", "-t", "my-image:latest", "-"]
    built = subprocess.run(command, input=context, capture_output=True, timeout=120, check=False)
    assert built.returncode == 0, built.stderr.decode()
    try:
        mirrored.pull(MY_IMAGE)
        assert mirrored.run(MY_IMAGE) == message
    finally:
        Docker(engine.socket).remove("my-image:latest")
    daemon.check_log()


@pytest.fixture(scope="module")
def index(upstream: Upstream, busybox: bytes) -> Json:
    """Two platforms in the registry; an engine on this machine pulls one of them."""
    repository = "k3dreg-test/platforms"
    manifests = []
    for architecture in ("arm64", "amd64"):
        layers = images.small_layers(busybox, f"for {architecture}")
        manifests.append((upstream.push_image(repository, "", layers, images.COMMAND, architecture), architecture))
    return upstream.push_index(repository, "1", manifests)


def test_an_index_of_which_docker_holds_one_platform_is_pulled_by_tag_and_by_digest(
    engine: EngineAddress, daemon: Daemon, mirrored: Node, upstream: Upstream, index: Json
) -> None:
    repository = f"{upstream.address}/k3dreg-test/platforms"
    docker = Docker(engine.socket)
    docker.remove(f"{repository}:1")
    docker.pull(repository, "1")
    by_tag, by_digest = f"{repository}:1", f"{repository}@{index['digest']}"
    mirrored.pull(by_tag)
    assert mirrored.run(by_tag).split("\n")[:2] == ["for amd64", VERDICT]
    mirrored.clean()
    if engine.containerd_store:
        assert Puller(daemon.host, upstream.address).manifest("k3dreg-test/platforms", "1").digest == index["digest"]
        mirrored.pull(by_digest)
        assert mirrored.run(by_digest).split("\n")[:2] == ["for amd64", VERDICT]
        assert mirrored.digest(by_digest) == index["digest"]
    else:
        # The classic store has no registry manifests, so the node has to go to the registry for this one.
        answer = Puller(daemon.host, upstream.address).manifest("k3dreg-test/platforms", index["digest"])
        assert answer.status == 404
    daemon.check_log()
