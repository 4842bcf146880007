"""Everything at once and at random: what no test of one thing thinks of.

    K3DREG_SOAK=600 .tox/engine/bin/pytest -n 0 tests/integration/test_soak.py

runs each for ten minutes.  Clients pull images, parts of images and ranges, read slowly, leave in the middle, push,
leave a push, look around; meanwhile the settings are read again, and somebody removes k3dreg's containers.  Every byte
is checked, nobody may be refused or wait for long, and the log has no fault.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from k3dreg.engine_files.helper_objects import ROLE
from tests.integration.conftest import READERS_ONLY, PushedImage
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker, DockerError
from tests.integration.support.puller import Puller, chunks
from tests.integration.support.registry_client import RegistryClient, digest_of
from tests.integration.support.rig import EngineAddress
from tests.integration.test_resources import descriptors, disk_space, until

SECONDS = float(os.environ.get("K3DREG_SOAK", "20"))
CLIENTS = 10
# Seconds in which everything gets its answer, and the next of its bytes.
MAX_WAIT = 60
MOST_PUSHED = 8_000_000
TAGS = "abc"
# Bytes.
CACHE = 75_000_000
RESERVE = 64_000_000  # for deleting on a full disk, and the database
# Open at rest: standard streams, the reactor's own, listening sockets, databases, idle connections to the engine.
DESCRIPTORS = 64


class Client(threading.Thread):
    """Does one thing after the other.  `did` counts them, `failures` tells of those that went wrong."""

    def __init__(self, daemon: Daemon, image: PushedImage, seed: int, end: float) -> None:
        super().__init__()
        self.did: Counter[str] = Counter()
        self.failures: list[str] = []
        # Locations of the upload sessions with half of a blob.
        self.left_pushes: list[str] = []
        self.pushed = 0  # bytes
        self._daemon = daemon
        self._image = image
        self._chance = random.Random(seed)
        self._repository = f"soak/{seed % CLIENTS}"
        self._end = end

    def run(self) -> None:
        things: list[tuple[Callable[[], None], int]] = [
            *[(self.pull, 5), (self.pull_slowly, 1), (self.leave_a_pull, 5), (self.resume, 2)],
            *[(self.push, 3), (self.leave_a_push, 1), (self.look, 2)],
        ]
        while time.monotonic() < self._end:
            (what,) = self._chance.choices([what for what, _ in things], [often for _, often in things])
            try:
                what()
            except Exception:  # noqa: BLE001  (whatever it is, it is told)
                self.failures.append(f"{time.strftime('%H:%M:%S')} {what.__name__}: {traceback.format_exc()}")
            self.did[what.__name__] += 1

    def pull(self) -> None:
        """Some of an image's blobs, on one connection."""
        puller, parts = self._parts()
        with contextlib.closing(puller):
            for digest, size in self._chance.sample(parts, 3):
                puller.blob(self._image.repository, digest, size)

    def pull_slowly(self) -> None:
        """Not so slowly that the whole of it takes longer than the test."""
        puller, parts = self._parts()
        digest, size = self._chance.choice(parts)
        naps = [1.0, 0.5, 0.25]
        with contextlib.closing(puller):
            length = 0
            for chunk in chunks(puller.open_blob(self._image.repository, digest)):
                length += len(chunk)
                if naps and self._chance.random() < 0.05:
                    time.sleep(naps.pop())
        assert length == size

    def leave_a_pull(self) -> None:
        puller, parts = self._parts()
        digest, size = self._chance.choice(parts)
        left = self._chance.randrange(size)
        with contextlib.closing(puller):
            for chunk in chunks(puller.open_blob(self._image.repository, digest)):
                left -= len(chunk)
                if left < 0:
                    break

    def resume(self) -> None:
        """The rest of a blob."""
        puller, parts = self._parts()
        digest, size = self._chance.choice(parts)
        begin = self._chance.randrange(size)
        with contextlib.closing(puller):
            rest = puller.open_blob(self._image.repository, digest, begin)
            assert sum(map(len, chunks(rest))) == size - begin

    def push(self) -> None:
        """An image; the layer that it had before is removed."""
        client, data = RegistryClient(self._daemon.host), self._chance.randbytes(self._chance.randrange(MOST_PUSHED))
        tag = self._chance.choice(TAGS)
        manifest = client.push_image(self._repository, tag, data)
        self.pushed += len(data) + 10_000  # its config and manifest
        assert client.get(f"/v2/{self._repository}/manifests/{tag}").body == manifest
        assert client.get(f"/v2/{self._repository}/blobs/{digest_of(data)}").body == data
        if self._chance.random() < 0.5:
            assert client.delete(f"/v2/{self._repository}/manifests/{digest_of(manifest)}").status == 202

    def leave_a_push(self) -> None:
        client, data = RegistryClient(self._daemon.host), self._chance.randbytes(MOST_PUSHED)
        location = client.begin(self._repository).location
        self.left_pushes.append(location)

        def half() -> Iterator[bytes]:
            yield data[: MOST_PUSHED // 2]
            raise InterruptedError

        with contextlib.suppress(InterruptedError):
            client.ask("PATCH", location, half())

    def look(self) -> None:
        paths = ("/v2/", "/v2/_catalog", f"/v2/{self._repository}/tags/list", "/metrics", "/readyz", "/")
        answer = RegistryClient(self._daemon.host).get(self._chance.choice(paths))
        assert answer.status in (200, 404), answer

    def _parts(self) -> tuple[Puller, list[tuple[str, int]]]:
        puller = Puller(self._daemon.host, self._image.registry, timeout=MAX_WAIT, max_wait=MAX_WAIT)
        return puller, puller.layers(self._image.repository, self._image.tag)


def _readers(docker: Docker) -> set[str]:
    readers = json.dumps({"label": [f"{ROLE}=reader"]})
    return {container["Id"] for container in docker.ask("GET", "/containers/json", all="1", filters=readers)}


def _disturb(daemon: Daemon, docker: Docker, end: float, others: set[str]) -> None:
    """Have the settings read again and remove the daemon's containers; `others` are those of other daemons."""
    while time.monotonic() < end:
        time.sleep(2)
        daemon.send(signal.SIGHUP)
        for container in _readers(docker) - others:
            with contextlib.suppress(DockerError):  # it may be gone
                docker.ask("DELETE", f"/containers/{container}", force="1")


def in_use(daemon: Daemon, state: Path) -> list[str]:
    """Files of content that the daemon has open, and files that are removed already and take room still."""
    content = (f"{state}/blobs", f"{state}/staging")
    return [target for target in descriptors(daemon) if target.startswith(content) or target.endswith("(deleted)")]


@pytest.mark.engines("docker29", "docker29-classic")
def test_many_clients_do_what_they_like(engine: EngineAddress, layered_image: PushedImage, tmp_path: Path) -> None:
    seed = int(os.environ.get("K3DREG_SEED", str(random.randrange(1 << 30))))
    print(f"K3DREG_SEED={seed}")
    docker = layered_image.pull_into(engine)
    others = _readers(docker)
    # Not all of the image fits in the cache.
    with running(engine, tmp_path, *READERS_ONLY, "--cache-size", str(CACHE)) as daemon:
        end = time.monotonic() + SECONDS
        clients = [Client(daemon, layered_image, seed + number, end) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        _disturb(daemon, docker, end, others)
        for client in clients:
            client.join()
        print(dict(sum((client.did for client in clients), Counter())), f"{daemon.peak_memory() >> 20} MiB")
        failures = [failure for client in clients for failure in client.failures]
        assert not failures, "\n".join(failures)[:10_000]
        assert daemon.peak_memory() < 96 << 20
        # The bytes of a push that was left wait an hour for the rest, unless the client cancels the session.
        for location in (location for client in clients for location in client.left_pushes):
            assert RegistryClient(daemon.host).ask("DELETE", location).status in (204, 404)
        # The cache and what was pushed are kept, also without a tag for hours.  Staged data and open files end with
        # their requests.
        state = tmp_path / "state"
        until(lambda: not in_use(daemon, state), lambda: str(in_use(daemon, state)), seconds=60)
        until(lambda: not disk_space(state / "staging"), lambda: str(list((state / "staging").rglob("*"))), seconds=60)
        # What has just come is not evicted for some seconds, whatever the limit.
        most = CACHE + RESERVE + sum(client.pushed for client in clients)
        until(lambda: disk_space(state) < most, lambda: f"{disk_space(state)} bytes, and not {most}", seconds=60)
        print(f"at the end: {len(descriptors(daemon))} descriptors, {disk_space(state) >> 20} MiB on the disk")
        assert len(descriptors(daemon)) < DESCRIPTORS
    docker.remove(layered_image.name)
