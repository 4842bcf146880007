"""`--warm`: an image is made ready when it gets a name that matches, and the first pull waits for nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import EXPORTS_ONLY, Push, PushedImage
from tests.integration.support import images, rig
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.images import MB
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress

NAME = "k3dreg-test-warm"


@pytest.fixture
def image(engine: EngineAddress, push: Push, busybox: bytes) -> Iterator[PushedImage]:
    """An image of 20 MB, in the engine under another name than those that are made ready."""
    sums: dict[str, str] = {}
    large = images.LayerMaker(sums)
    large.file("large", images.noise(20 * MB, "warm"))
    image = push("k3dreg-test/not-warm", [*images.small_layers(busybox, "warm"), large.layer(None)], "warm")
    docker = image.pull_into(engine)
    yield image
    for name in (f"{NAME}:1", f"{NAME}:2", image.name):
        docker.remove(name)


def _pull(daemon: Daemon, tag: str) -> int:
    puller = Puller(daemon.host)
    size = puller.image(NAME, tag)
    puller.manifest(NAME, tag)  # on the same connection, so the answer before it has been logged as whole
    puller.close()
    return size


def _source(daemon: Daemon, image: PushedImage) -> str:
    """Where the large layer, a plain tar that is the same in every store, came from in the one pull so far."""
    short = image.layers[-1]["digest"].removeprefix("sha256:")[:12]
    return daemon.wait_for(rf" blob sha256:{short} 200 ([^,]+),")[1]


@pytest.mark.engines("docker29", "docker29-classic", "docker20")
def test_an_image_that_gets_a_name_is_there_before_the_first_pull(
    engine: EngineAddress, image: PushedImage, tmp_path: Path
) -> None:
    docker = Docker(engine.socket)
    # What costs nothing to read is not made ready, so on this engine it has to be an export.
    options = EXPORTS_ONLY if engine.containerd_store else ()
    with running(engine, tmp_path, "--warm", f"{NAME}:*", *options) as daemon:
        docker.tag(image.name, NAME, "1")
        daemon.wait_for(f"made {NAME}:1 ready in ")
        made = time.time()
        assert _pull(daemon, "1") > 20 * MB
        assert _source(daemon, image) == "cache"
        # An image that is known is not made ready again.
        docker.tag(image.name, NAME, "2")
        assert _pull(daemon, "2") > 20 * MB
        assert docker.exports(made, time.time()) == 0
        assert len([line for line in daemon.log().splitlines() if " ready in " in line]) == 1


@pytest.mark.engines("docker29")
def test_where_the_engines_files_are_read_there_is_nothing_to_make_ready(
    engine: EngineAddress, image: PushedImage, tmp_path: Path
) -> None:
    docker = Docker(engine.socket)
    docker.tag(image.name, NAME, "1")
    began = time.time()
    with running(engine, tmp_path, "--warm", NAME) as daemon:
        docker.tag(image.name, NAME, "2")
        assert _pull(daemon, "2") > 20 * MB
        assert _source(daemon, image) == "content"
        assert " ready in " not in daemon.log()
        assert docker.exports(began, time.time()) == 0


@pytest.mark.engines("docker29-classic-spare")
def test_an_engine_that_was_away_is_listened_to_again(
    engine: EngineAddress, image: PushedImage, tmp_path: Path
) -> None:
    docker = Docker(engine.socket)
    with rig.alone(engine.name), running(engine, tmp_path, "--warm", f"{NAME}:*") as daemon:
        daemon.wait_for("images come from Docker")
        try:
            rig.kill_engine(engine)
            daemon.wait_for("no engine at")
        finally:
            rig.start_engine(engine)
        docker.tag(image.name, NAME, "1")
        daemon.wait_for(f"made {NAME}:1 ready in ")
        assert _pull(daemon, "1") > 20 * MB
        daemon.kill()
        # What is there at the start is made ready, too.
        daemon.start()
        assert _pull(daemon, "1") > 20 * MB
