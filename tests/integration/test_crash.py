"""The daemon is killed at random instants while clients push; what it acknowledged is there afterwards, whole."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import threading
import time
from pathlib import Path

import pytest

from tests.integration.support.daemon import running
from tests.integration.support.registry_client import RegistryClient, digest_of, index, manifest, with_digest
from tests.integration.support.rig import EngineAddress

NOBODY = EngineAddress("nobody", "unix:///nonexistent/docker.sock")
# A few hundred show more, and take minutes; set K3DREG_CRASHES.
CRASHES = int(os.environ.get("K3DREG_CRASHES", "10"))
CLIENTS = 4
CONFIG = b'{"architecture": "amd64", "os": "linux"}'


class Pusher(threading.Thread):
    """Pushes images until the daemon is gone; remembers what was acknowledged."""

    def __init__(self, host: str, name: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.client = RegistryClient(host, keep_alive=True)
        self.repository = name
        self.random = random.Random(seed)
        self.blobs: set[str] = set()
        self.manifests: dict[str, bytes] = {}
        self.tags: dict[str, list[str]] = {}  # what a tag was set to, in order; the last may not be acknowledged
        self.acknowledged: dict[str, str] = {}

    def run(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                self.push_one()

    def push_one(self) -> None:
        layers = [self.random.randbytes(self.random.choice((10, 5000, 700_000))) for _ in range(2)]
        for data in (CONFIG, *layers):
            self.push_blob(data)
        data = manifest(CONFIG, layers)
        if self.random.random() < 0.3:
            self.put(digest_of(data), data)
            data = index([data])
        self.put(self.random.choice(("latest", "edge", str(self.random.randrange(1 << 30)))), data)

    def push_blob(self, data: bytes) -> None:
        digest = digest_of(data)
        location = self.client.begin(self.repository).location
        if self.random.random() < 0.5:
            half = len(data) // 2
            answer = self.client.ask("PATCH", location, iter([data[:half], data[half:]]))
            answer = self.client.ask("PUT", with_digest(answer.location, digest), Content_Length="0")
        else:
            answer = self.client.ask("PUT", with_digest(location, digest), data)
        assert answer.status == 201, answer
        self.blobs.add(digest)

    def put(self, reference: str, data: bytes) -> None:
        digest = digest_of(data)
        if reference != digest:
            self.tags.setdefault(reference, []).append(digest)
        self.manifests[digest] = data
        answer = self.client.push_manifest(self.repository, reference, data)
        assert answer.status == 201, answer
        self.acknowledged[reference] = digest


def check(client: RegistryClient, pushed: Pusher) -> None:
    """Everything acknowledged is there; a tag names what was acknowledged last, or what was being pushed after it."""
    base = f"/v2/{pushed.repository}"
    for digest in pushed.blobs:
        answer = client.get(f"{base}/blobs/{digest}")
        assert (answer.status, digest_of(answer.body)) == (200, digest)
    for reference, digest in pushed.acknowledged.items():
        answer = client.get(f"{base}/manifests/{reference}")
        assert answer.status == 200, (reference, answer)
        found = digest_of(answer.body)
        may_be = {digest} if reference == digest else set(pushed.tags[reference][-2:]) | {digest}
        assert found in may_be, (reference, found)
        assert answer.body == pushed.manifests[found]


def test_nothing_acknowledged_is_lost_and_nothing_half_written_is_seen(tmp_path: Path) -> None:
    seed = int(os.environ.get("K3DREG_SEED", str(random.randrange(1 << 30))))
    print(f"K3DREG_SEED={seed}")
    chance = random.Random(seed)
    past: list[Pusher] = []
    acknowledged = 0
    with running(NOBODY, tmp_path) as daemon:
        for crash in range(CRASHES):
            pushers = [
                Pusher(daemon.host, f"crash/r{crash}-{number}", chance.randrange(1 << 30)) for number in range(CLIENTS)
            ]
            for pusher in pushers:
                pusher.start()
            time.sleep(chance.uniform(0.005, 0.8))
            daemon.kill()
            for pusher in pushers:
                pusher.join(60)
                assert not pusher.is_alive()
                acknowledged += len(pusher.acknowledged)
            daemon.start()
            assert list((tmp_path / "state" / "staging").iterdir()) == []
            client = RegistryClient(daemon.host, keep_alive=True)
            for pusher in (*pushers, *chance.sample(past, min(2, len(past)))):
                check(client, pusher)
            past += pushers
        client = RegistryClient(daemon.host, keep_alive=True)
        for pusher in past:
            check(client, pusher)
    for path in (tmp_path / "state" / "blobs").rglob("*"):
        if path.is_file():
            assert digest_of(path.read_bytes(), path.parts[-3]) == f"{path.parts[-3]}:{path.name}"
    print(f"{CRASHES} crashes, {acknowledged} references acknowledged, none lost")
    assert acknowledged > CRASHES


@pytest.mark.parametrize("size", [0, 4000, 5001])
def test_a_pushed_blob_that_another_size_is_left_of_is_not_served_and_a_push_mends_it(
    tmp_path: Path, size: int
) -> None:
    data = random.Random(size).randbytes(5000)
    path = f"/v2/app/blobs/{digest_of(data)}"
    with running(NOBODY, tmp_path) as daemon:
        client = RegistryClient(daemon.host)
        image = client.push_image("app", "1", data)
        [file] = (tmp_path / "state" / "blobs").rglob(digest_of(data).partition(":")[2])
        os.truncate(file, size)
        daemon.kill()
        daemon.start()
        client = RegistryClient(daemon.host)
        assert client.head(path).status == 404
        assert client.get(path).status == 404
        assert digest_of(data) in daemon.log()
        client.push_blob("app", data)
        assert client.push_manifest("app", "1", image).status == 201
        daemon.kill()
        daemon.start()
        assert RegistryClient(daemon.host).get(path).body == data
