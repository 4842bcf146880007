"""A disk without room, and what a client is told; what was there stays, and room is all it takes."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.support.daemon import Daemon, running
from tests.integration.support.registry_client import Answer, RegistryClient, digest_of, with_digest
from tests.integration.support.rig import EngineAddress

NOBODY = EngineAddress("nobody", "unix:///nonexistent/docker.sock")
MIB = 1 << 20
SIZE = 24 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of that size."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(directory)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextlib.contextmanager
def no_room(disk: Path) -> Iterator[None]:
    """Not a single block."""
    filler = disk / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(descriptor, bytes(4096))
    os.close(descriptor)
    try:
        yield
    finally:
        filler.unlink()


def check_refused(answer: Answer) -> None:
    assert (answer.status, answer.code) == (507, "UNAVAILABLE")
    assert "no room is left on the disk" in answer.json["errors"][0]["message"]


def check_image(daemon: Daemon, tag: str, data: bytes, layer: bytes) -> None:
    client = RegistryClient(daemon.host)
    assert client.get(f"/v2/app/manifests/{tag}").body == data
    assert client.get(f"/v2/app/blobs/{digest_of(layer)}").body == layer


@pytest.mark.parametrize("way", ["put", "patch", "post"])
def test_a_push_that_does_not_fit_is_told_so_and_leaves_nothing(tmp_path: Path, disk: Path, way: str) -> None:
    layer, large = os.urandom(5 * MIB), os.urandom(SIZE)
    with running(NOBODY, tmp_path, state=disk / "state") as daemon:
        client = RegistryClient(daemon.host)
        image = client.push_image("app", "t", layer)
        free = os.statvfs(disk).f_bavail
        location = client.begin("app").location
        if way == "put":
            answer = client.ask("PUT", with_digest(location, digest_of(large)), large)
        elif way == "patch":
            answer = client.ask("PATCH", location, iter([large[at : at + MIB] for at in range(0, SIZE, MIB)]))
        else:
            answer = client.ask("POST", f"/v2/app/blobs/uploads/?digest={digest_of(large)}", large)
        check_refused(answer)
        assert client.get(location).status == (204 if way == "post" else 404)
        assert os.statvfs(disk).f_bavail == free
        assert list((disk / "state/staging").iterdir()) == []
        check_image(daemon, "t", image, layer)
        other = os.urandom(5 * MIB)
        check_image(daemon, "u", client.push_image("app", "u", other), other)


def test_with_no_room_at_all_it_serves_deletes_and_starts(tmp_path: Path, disk: Path) -> None:
    layer, other = os.urandom(2 * MIB), os.urandom(2 * MIB)
    with running(NOBODY, tmp_path, state=disk / "state") as daemon:
        client = RegistryClient(daemon.host)
        image = client.push_image("app", "t", layer)
        client.push_image("app", "u", other)
        with no_room(disk):
            check_refused(client.push_manifest("app", "v", image))
            check_refused(client.ask("POST", f"/v2/app/blobs/uploads/?digest={digest_of(b'x')}", b"x"))
            check_image(daemon, "t", image, layer)
            assert client.delete("/v2/app/manifests/u").status == 202
            assert client.get("/v2/app/tags/list").json["tags"] == ["t"]
            daemon.stop()
            daemon.start()
            check_image(daemon, "t", image, layer)
            daemon.kill()
            daemon.start()
            check_image(daemon, "t", image, layer)
            client = RegistryClient(daemon.host)
            assert client.get("/v2/app/tags/list").json["tags"] == ["t"]
            # What is deleted makes the room for what comes next.
            assert client.delete(f"/v2/app/blobs/{digest_of(other)}").status == 202
            client.push_image("app", "w", b"small")
        check_image(daemon, "t", image, layer)
