"""Twenty clients ask for one cold image of half a gigabyte at the same time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.conftest import PushedImage
from tests.integration.support.daemon import running
from tests.integration.support.docker_api import Docker
from tests.integration.support.images import MB
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress

CLIENTS = 20


@pytest.fixture(scope="module")
def docker(engine: EngineAddress, large_image: PushedImage) -> Iterator[Docker]:
    """The engine's API; it has the image."""
    docker = large_image.pull_into(engine)
    yield docker
    docker.remove(large_image.name)


@pytest.mark.engines("docker29", "docker29-classic")
def test_twenty_clients_of_a_cold_image_make_one_export_and_little_memory(
    engine: EngineAddress, docker: Docker, options: tuple[str, ...], large_image: PushedImage, tmp_path: Path
) -> None:
    with running(engine, tmp_path, *options) as daemon, ThreadPoolExecutor(CLIENTS) as threads:
        began = time.time()

        def pull(_: int) -> int:
            # Docker's classic store may take longer to copy it all than a node waits.
            puller = Puller(daemon.host, large_image.registry, timeout=900, max_wait=300)
            return puller.image(large_image.repository, large_image.tag)

        sizes = list(threads.map(pull, range(CLIENTS)))
        seconds = time.time() - began
        memory = daemon.peak_memory()
        told = f"{sum(sizes) / 1e9:.1f} GB in {seconds:.0f} s, {memory >> 20} MiB at most"
        print(f"{engine.name} {options}: {CLIENTS} clients, {told}")
        assert min(sizes) == max(sizes) > 250 * MB
        assert docker.exports(began, time.time()) <= 1
        assert memory < 80 << 20
