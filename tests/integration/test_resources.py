"""What the daemon uses of the machine, descriptors and disk space, ends with its use; and little of it is enough."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from k3dreg.oci.digest import Digest
from tests.integration.conftest import PushedImage
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress

MB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """small_disk(options): a tmpfs with these mount options; called again, the same one is mounted anew with others."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = False

    def make(options: str) -> Path:
        nonlocal mounted
        options += ",remount" if mounted else ""
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], check=True)
        mounted = True
        return directory

    yield make
    if mounted:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.mark.engines("docker29")
def test_downloads_that_are_broken_off_leave_no_descriptor_and_no_disk_space(
    engine: EngineAddress, tmp_path: Path
) -> None:
    with running(engine, tmp_path) as daemon:
        name, data = f"leaks-{uuid.uuid4().hex}", os.urandom(24 * MB)
        digest = push_blob(daemon, name, data)
        broken_off(daemon, f"/v2/{name}/blobs/{digest}")
        time.sleep(0.5)
        before = descriptors(daemon)
        for _ in range(150):
            broken_off(daemon, f"/v2/{name}/blobs/{digest}")
        until(lambda: len(descriptors(daemon)) <= len(before), lambda: f"{len(before)}: {descriptors(daemon)[-20:]}")
        held = disk_space(tmp_path / "state" / "blobs")
        assert ask(daemon, "DELETE", f"/v2/{name}/blobs/{digest}")[0] == 202
        until(
            lambda: disk_space(tmp_path / "state" / "blobs") <= held - len(data), lambda: "the blob is still there", 15
        )
        assert not [target for target in descriptors(daemon) if target.endswith("(deleted)")]


@pytest.mark.engines("docker29", "docker29-classic")
def test_an_engines_image_that_is_broken_off_leaves_no_descriptor(
    engine: EngineAddress, large_image: PushedImage, tmp_path: Path
) -> None:
    large_image.pull_into(engine)
    with running(engine, tmp_path) as daemon:
        puller = Puller(daemon.host, large_image.registry)
        layer = max(puller.layers(large_image.repository, large_image.tag), key=lambda layer: layer[1])[0]
        path = f"/v2/{large_image.repository}/blobs/{layer}?ns={large_image.registry}"
        broken_off(daemon, path)
        time.sleep(2)
        before = descriptors(daemon)
        for _ in range(50):
            broken_off(daemon, path)
        until(lambda: len(descriptors(daemon)) <= len(before), lambda: f"{len(before)}: {descriptors(daemon)[-20:]}")


@pytest.mark.engines("docker29", "docker29-classic")
@pytest.mark.parametrize("trouble", ["full", "not writable"])
def test_a_cache_that_cannot_be_written_fails_no_manifest(
    engine: EngineAddress,
    small_image: PushedImage,
    tmp_path: Path,
    small_disk: Callable[[str], Path],
    trouble: str,
) -> None:
    small_image.pull_into(engine)
    state = small_disk("size=8m")
    with running(engine, tmp_path, state=state) as daemon:
        if trouble == "full":
            fill(state)
        else:
            (state / "staging").rename(state / "elsewhere")
        answer = Puller(daemon.host, small_image.registry).manifest(small_image.repository, small_image.tag)
        assert answer.status == 200, answer
        if trouble == "full":
            daemon.wait_for("keeps its records of images in memory only")


@pytest.mark.engines("docker29")
def test_a_disk_that_is_full_twice_and_a_kill_do_not_keep_it_from_starting_serving_and_deleting(
    engine: EngineAddress, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    state = small_disk("size=40m")
    with running(engine, tmp_path, state=state) as daemon:
        name = f"full-{uuid.uuid4().hex}"
        kept, other = os.urandom(3 * MB), os.urandom(2 * MB)
        digest, second = push_blob(daemon, name, kept), push_blob(daemon, name, other)
        fill(state)
        assert ask(daemon, "DELETE", f"/v2/{name}/blobs/{second}")[0] == 202
        fill(state)
        (state / "reserve").unlink(missing_ok=True)
        fill(state)
        daemon.kill()
        fill(state)
        daemon.start()
        assert ask(daemon, "GET", f"/v2/{name}/blobs/{digest}") == (200, kept)
        assert ask(daemon, "DELETE", f"/v2/{name}/blobs/{digest}")[0] == 202
        assert ask(daemon, "GET", f"/v2/{name}/blobs/{digest}")[0] == 404


@pytest.mark.engines("docker29")
def test_the_limit_of_descriptors_is_raised_to_what_it_may_be(engine: EngineAddress, tmp_path: Path) -> None:
    prlimit = shutil.which("prlimit")
    assert prlimit
    with running(engine, tmp_path, before=[prlimit, "--nofile=64:4096"]) as daemon:
        waiting = [http.client.HTTPConnection(daemon.host, timeout=20) for _ in range(150)]
        try:
            for connection in waiting:
                connection.request("GET", "/v2/")
                answer = connection.getresponse()
                assert (answer.status, answer.read()) == (200, b"{}")
        finally:
            for connection in waiting:
                connection.close()


@pytest.mark.engines("docker29")
def test_a_pushed_blob_that_was_cut_short_is_never_served_and_a_push_mends_it(
    engine: EngineAddress, tmp_path: Path
) -> None:
    with running(engine, tmp_path) as daemon:
        name, data = f"short-{uuid.uuid4().hex}", os.urandom(3 * MB)
        digest = push_blob(daemon, name, data)
        daemon.stop()
        (file,) = (tmp_path / "state" / "blobs").rglob(digest.hex)
        os.truncate(file, MB)
        daemon.start()
        assert ask(daemon, "HEAD", f"/v2/{name}/blobs/{digest}")[0] == 404
        assert ask(daemon, "GET", f"/v2/{name}/blobs/{digest}")[0] == 404
        assert digest.short in daemon.log()
        push_blob(daemon, name, data)
        assert ask(daemon, "GET", f"/v2/{name}/blobs/{digest}") == (200, data)


def ask(daemon: Daemon, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of an answer."""
    connection = http.client.HTTPConnection(daemon.host, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/octet-stream"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def push_blob(daemon: Daemon, name: str, data: bytes) -> Digest:
    """Push it in one request."""
    digest = Digest.of(data)
    status, told = ask(daemon, "POST", f"/v2/{name}/blobs/uploads/?digest={digest}", data)
    assert status == 201, told
    return digest


def broken_off(daemon: Daemon, path: str) -> None:
    """Read some bytes of a download and go away."""
    connection = http.client.HTTPConnection(daemon.host, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 200
    assert len(answer.read(1000)) == 1000
    answer.close()
    connection.close()


def descriptors(daemon: Daemon) -> list[str]:
    """What the daemon's descriptors are of."""
    targets = []
    directory = Path(f"/proc/{daemon.pid}/fd")
    for name in os.listdir(directory):
        try:
            targets.append(os.readlink(directory / name))
        except FileNotFoundError:
            continue
    return targets


def disk_space(directory: Path) -> int:
    """Bytes in the files below it."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def until(condition: Callable[[], bool], complaint: Callable[[], str], seconds: float = 10) -> None:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, complaint()
        time.sleep(0.1)


def fill(directory: Path) -> None:
    """Leave no room on the disk of this directory."""
    with (directory / f"filling-{uuid.uuid4().hex}").open("wb", buffering=0) as file:
        for size in (MB, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
