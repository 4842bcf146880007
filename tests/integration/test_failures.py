"""What breaks in the middle: the engine, the client, the disk, the daemon itself.

Each time nothing wrong is handed over as whole, and the next try works.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.conftest import EXPORTS_ONLY, READERS_ONLY, PushedImage
from tests.integration.support import rig
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.images import MB
from tests.integration.support.puller import Broken, LazyReader, Puller, chunks
from tests.integration.support.rig import EngineAddress


@pytest.fixture(scope="module")
def large(engine: EngineAddress, large_image: PushedImage) -> Iterator[PushedImage]:
    """The large image, in the engine."""
    docker = large_image.pull_into(engine)
    yield large_image
    docker.remove(large_image.name)


def _big_layers(image: PushedImage) -> list[tuple[str, int]]:
    """(digest, size) of the layers of 50 MB, in the order in which `docker save` writes them: it sorts by digest."""
    return sorted((layer["digest"], layer["size"]) for layer in image.layers if layer["size"] > 40 * MB)


@pytest.fixture
def spare(engine: EngineAddress) -> Iterator[EngineAddress]:
    """An engine to be killed.  It is up again afterwards."""
    with rig.alone(engine.name):
        yield engine
        rig.start_engine(engine)


@pytest.mark.engines("docker29-spare", "docker29-classic-spare")
def test_an_engine_killed_in_the_middle(
    spare: EngineAddress, options: tuple[str, ...], large: PushedImage, tmp_path: Path
) -> None:
    with running(spare, tmp_path, *options) as daemon:
        outcome: list[Exception | int] = []

        def pull() -> None:
            try:
                outcome.append(_pull(daemon, large))
            except (Broken, AssertionError) as error:
                outcome.append(error)

        client = threading.Thread(target=pull)
        client.start()
        if options == EXPORTS_ONLY and not spare.containerd_store:
            # Nothing arrives before the engine has copied everything.
            daemon.wait_for("exporting ")
            rig.kill_engine(spare)
        else:
            _kill_while_a_blob_is_read(spare, daemon, large, options)
        client.join(60)
        assert len(outcome) == 1
        if options == EXPORTS_ONLY:
            assert isinstance(outcome[0], Broken), outcome[0]
        else:
            # It may have had everything by then.
            assert not isinstance(outcome[0], AssertionError), outcome[0]
        # While the engine is down, the answer says so, and at once.
        answer = Puller(daemon.host, large.registry, 20).manifest("k3dreg-test/other", "1")
        assert answer.status == 503, answer.body
        assert answer.json["errors"][0]["message"]
        # Not 404, upon which the node would ask the next registry: only what a registry refused is "not found".
        absent = f"sha256:{'0' * 64}"
        for reference in (large.tag, absent):
            answer = Puller(daemon.host, large.registry, 20).manifest(large.repository, reference)
            assert answer.status == 503, answer.body
        rig.start_engine(spare)
        assert _pull(daemon, large) > 2.5e8


def _kill_while_a_blob_is_read(
    engine: EngineAddress, daemon: Daemon, image: PushedImage, options: tuple[str, ...]
) -> None:
    reader = Puller(daemon.host, image.registry)
    parts = [part for part in reader.layers(image.repository, image.tag) if part[1] > 40 * MB]
    digest, size = min(parts)
    try:
        reader.blob(image.repository, digest, size, halfway=lambda: rig.kill_engine(engine))
    except Broken as error:
        assert re.search(rf"[1-9]\d* of {size} bytes", str(error)), error
    else:
        assert options != EXPORTS_ONLY, "50 MB came out of an engine that was dead"


@pytest.mark.engines("docker29", "docker29-classic")
def test_a_client_that_leaves_in_the_middle_harms_nobody(
    engine: EngineAddress, options: tuple[str, ...], large: PushedImage, tmp_path: Path
) -> None:
    with running(engine, tmp_path, *options) as daemon:
        for digest, _ in (_big_layers(large)[0], _big_layers(large)[-1]):
            puller = Puller(daemon.host, large.registry)
            puller.layers(large.repository, large.tag)
            next(chunks(puller.open_blob(large.repository, digest)))
            puller.close()
        assert Puller(daemon.host, large.registry).image(large.repository, large.tag) > 2.5e8
        assert daemon.peak_memory() < 80 << 20


@pytest.mark.engines("docker29", "docker29-classic")
def test_a_client_that_stops_reading_costs_no_memory_and_holds_nobody_up(
    engine: EngineAddress, options: tuple[str, ...], large: PushedImage, tmp_path: Path
) -> None:
    with running(engine, tmp_path, *options) as daemon, contextlib.ExitStack() as stack:
        puller = Puller(daemon.host, large.registry)
        puller.layers(large.repository, large.tag)
        lazy = {}
        for digest, size in _big_layers(large):
            reader = LazyReader(daemon.host, large.registry, large.repository, digest)
            lazy[digest, size] = stack.enter_context(contextlib.closing(reader))
        assert puller.image(large.repository, large.tag) > 2.5e8
        assert daemon.peak_memory() < 80 << 20
        for (_, size), reader in lazy.items():
            assert reader.read(size) == size


@pytest.fixture
def tight_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """tight_disk(bytes): a file system of that size; called again, the same one with another size."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = False

    def make(size: int) -> Path:
        nonlocal mounted
        options = f"size={size}" + (",remount" if mounted else "")
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], check=True)
        mounted = True
        return directory

    yield make
    if mounted:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.mark.engines("docker29", "docker29-classic")
def test_a_full_disk_is_an_error_that_says_so_and_room_is_all_it_takes(
    engine: EngineAddress, layered_image: PushedImage, tmp_path: Path, tight_disk: Callable[[int], Path]
) -> None:
    layered_image.pull_into(engine)
    state = tight_disk(60_000_000)
    with running(engine, tmp_path, *EXPORTS_ONLY, state=state) as daemon:
        with pytest.raises(Broken):
            Puller(daemon.host, layered_image.registry).image(layered_image.repository, layered_image.tag)
        daemon.wait_for("no room is left on the disk of the state directory")
        tight_disk(500_000_000)
        assert Puller(daemon.host, layered_image.registry).image(layered_image.repository, layered_image.tag) > 1e8
        assert daemon.peak_memory() < 80 << 20


@pytest.mark.engines("docker29-classic")
def test_layers_are_put_together_and_served_on_a_full_disk(
    engine: EngineAddress, layered_image: PushedImage, tmp_path: Path, tight_disk: Callable[[int], Path]
) -> None:
    layered_image.pull_into(engine)
    with running(engine, tmp_path, state=tight_disk(20_000_000)) as daemon, ThreadPoolExecutor(2) as threads:
        sizes = list(threads.map(lambda _: _pull(daemon, layered_image), range(2)))
        assert min(sizes) == max(sizes) > 1e8
        daemon.wait_for("is sent without being kept: no room is left on the disk of the state directory")
        assert daemon.peak_memory() < 150 << 20


@pytest.mark.engines("docker29", "docker26")
def test_a_full_disk_does_not_matter_to_those_who_share_one_reading_of_docker_s_files(
    engine: EngineAddress, large: PushedImage, tmp_path: Path, tight_disk: Callable[[int], Path]
) -> None:
    state = tight_disk(40_000_000)
    with running(engine, tmp_path, *READERS_ONLY, state=state) as daemon, ThreadPoolExecutor(4) as threads:
        sizes = list(threads.map(lambda _: _pull(daemon, large), range(4)))
        assert min(sizes) == max(sizes) > 2.5e8
        assert daemon.peak_memory() < 80 << 20


def _pull(daemon: Daemon, image: PushedImage) -> int:
    return Puller(daemon.host, image.registry).image(image.repository, image.tag)


@pytest.mark.engines("docker29")
def test_a_daemon_killed_in_the_middle_of_an_export_starts_again_and_serves_it(
    engine: EngineAddress, large: PushedImage, tmp_path: Path
) -> None:
    with running(engine, tmp_path, *EXPORTS_ONLY) as daemon:
        puller = Puller(daemon.host, large.registry)
        puller.layers(large.repository, large.tag)
        next(chunks(puller.open_blob(large.repository, _big_layers(large)[0][0])))
        daemon.kill()
        with pytest.raises(Broken):
            puller.blob(large.repository, *_big_layers(large)[-1])
        daemon.start()
        assert _pull(daemon, large) > 2.5e8


@pytest.mark.engines("docker29-spare")
def test_a_daemon_without_an_engine_starts_and_finds_it_when_it_comes(
    spare: EngineAddress, small_image: PushedImage, tmp_path: Path
) -> None:
    small_image.pull_into(spare)
    rig.kill_engine(spare)
    with running(spare, tmp_path) as daemon:
        answer = Puller(daemon.host, small_image.registry, 20).manifest(small_image.repository, small_image.tag)
        assert answer.status == 503
        rig.start_engine(spare)
        assert _pull(daemon, small_image) > 0
