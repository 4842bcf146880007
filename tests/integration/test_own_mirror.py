"""A Docker that has k3dreg for its own registry mirror: what k3dreg asks it for comes back to k3dreg."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.integration.conftest import PushedImage
from tests.integration.support import rig
from tests.integration.support.daemon import running
from tests.integration.support.docker_api import Docker
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress


@pytest.mark.engines("docker29-spare", "docker29-classic-spare")
def test_an_engine_that_asks_for_us_goes_on_to_the_next_registry(
    engine: EngineAddress, small_image: PushedImage, tmp_path: Path
) -> None:
    docker = Docker(engine.socket)
    name = f"docker.io/{small_image.repository}:{small_image.tag}"
    with running(engine, tmp_path) as daemon:
        # Docker asks its mirrors for Docker Hub's images only; the second one stands for Docker Hub here.
        with rig.mirrors(engine, f"http://{daemon.host}", f"http://{small_image.registry}"):
            puller = Puller(daemon.host, "docker.io")
            for pull in (
                lambda: puller.image(small_image.repository, small_image.tag),
                # A person's own, for which k3dreg asks Docker in its turn.
                lambda: docker.pull(f"docker.io/{small_image.repository}", small_image.tag),
            ):
                docker.remove(name)
                began = time.monotonic()
                pull()
                # Nobody waits for himself: a node is told to come again after 18 seconds.
                assert time.monotonic() - began < 10
                assert docker.inspect(name) is not None
        assert json.loads(docker.call("GET", "/info"))["RegistryConfig"]["Mirrors"] in (None, [])
        daemon.check_log()
    docker.remove(name)
