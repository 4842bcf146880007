"""While Docker takes long, a client is answered in time, and given what has come."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest
from attrs import evolve

from tests.integration.conftest import EXPORTS_ONLY, Push
from tests.integration.support import images
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.node import Node, PullFailed
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress
from tests.integration.support.slow import slowly
from tests.integration.support.upstream import Upstream

MB = 1000 * 1000
# The large layer takes half a minute: longer than an impatient node waits for the head of an answer.
SIZE, RATE = 30 * MB, 1 * MB
IMPATIENT = 20
# containerd 2.3's ResponseHeaderTimeout (core/remotes/docker/registry.go), and a rate at which the image takes longer.
NODE_DEADLINE, DEADLINE_RATE = 30, 0.8 * MB


@pytest.mark.engines("docker29")
def test_a_slow_pull_is_answered_in_time_and_its_small_layers_come_before_its_large_one(
    engine: EngineAddress, daemon: Daemon, upstream: Upstream, push: Push, busybox: bytes
) -> None:
    sums: dict[str, str] = {}
    large = images.LayerMaker(sums)
    large.file("large", images.noise(SIZE, "slow"))
    pushed = push("k3dreg-test/slow", [*images.small_layers(busybox, "slow"), large.layer(None)], "slow")
    with slowly(upstream.address, RATE) as detour:
        image = evolve(pushed, registry=detour)
        docker = image.remove_from(engine)
        puller = Puller(daemon.host, detour)
        started = time.monotonic()
        head = puller.manifest(image.repository, "1", "HEAD")
        assert head.status == 200
        assert time.monotonic() - started < IMPATIENT
        assert docker.inspect(image.name) is None, "the pull was not slow"
        assert head.digest == image.manifest["digest"]
        manifest = puller.manifest(image.repository, head.digest)
        sizes = {layer["digest"]: layer["size"] for layer in manifest.json["layers"]}
        small = min(sizes, key=lambda digest: sizes[digest])
        assert _fetch(puller, image.repository, small) == small
        assert docker.inspect(image.name) is None, "the small layer came with the end of the pull only"
        biggest = max(sizes, key=lambda digest: sizes[digest])
        assert _fetch(puller, image.repository, biggest) == biggest
        image.remove_from(engine)
    Docker(engine.socket).remove(pushed.name)
    daemon.check_log()


@pytest.mark.engines("docker29-classic")
def test_an_engine_that_is_slow_costs_one_export_whatever_its_clients_give_up(
    engine: EngineAddress, push: Push, busybox: bytes, tmp_path: Path
) -> None:
    sums: dict[str, str] = {}
    large = images.LayerMaker(sums)
    # Until all of it has come nothing is known of the image, and that is longer than an impatient node waits.
    large.file("large", images.noise(22 * MB, "slow export"))
    pushed = push("k3dreg-test/slow-export", [*images.small_layers(busybox, "slow"), large.layer(None)], "slow")
    docker = pushed.pull_into(engine)
    began = time.time()
    with slowly(engine.socket, RATE) as detour:
        slow = EngineAddress(engine.name, f"tcp://{detour}")
        with running(slow, tmp_path, *EXPORTS_ONLY) as daemon:
            impatient = Puller(daemon.host, pushed.registry, IMPATIENT)
            told = impatient.manifest(pushed.repository, pushed.tag)
            assert (told.status, told.json["errors"][0]["code"]) == (503, "UNAVAILABLE")
            patient = Puller(daemon.host, pushed.registry)
            while patient.manifest(pushed.repository, pushed.tag, "HEAD").status == 503:
                pass
            assert patient.image(pushed.repository, pushed.tag) > 22 * MB
    assert docker.exports(began, time.time()) == 1
    docker.remove(pushed.name)


def _fetch(puller: Puller, repository: str, digest: str) -> str:
    answer = puller.open_blob(repository, digest)
    return "sha256:" + hashlib.sha256(answer.read()).hexdigest()


@pytest.mark.engines("docker29", "docker29-classic")
@pytest.mark.nodes("node23")
def test_a_node_that_waits_thirty_seconds_for_headers_gets_an_image_that_takes_docker_longer(
    engine: EngineAddress, daemon: Daemon, node: Node, upstream: Upstream, push: Push, busybox: bytes
) -> None:
    """containerd 2.3 gives a host up after 30 s without response headers.  A kubelet tries a failed pull again."""
    message, sums = f"slow for {engine.name}", dict[str, str]()
    large = images.LayerMaker(sums)
    large.file("large", images.noise(SIZE, message))
    layers = [*images.small_layers(busybox, message), large.layer(None)]
    pushed = push(f"k3dreg-test/slow-for-{engine.name}", layers, message)
    with slowly(upstream.address, DEADLINE_RATE) as detour:
        image = evolve(pushed, registry=detour)
        image.remove_from(engine)
        node.use_mirror(daemon.host)
        began, tries = time.monotonic(), list[str]()
        while len(tries) < 5:
            try:
                node.pull(image.name)
                break
            except PullFailed as failed:
                tries.append(str(failed))
        assert time.monotonic() - began > NODE_DEADLINE, "the pull was not slow"
        # k3dreg answered every try: the node gave up on none.
        assert [said for said in tries if "503 Service Unavailable" not in said] == []
        assert node.run(image.name).split("\n")[0] == message
        image.remove_from(engine)
    Docker(engine.socket).remove(pushed.name)
    daemon.check_log()
