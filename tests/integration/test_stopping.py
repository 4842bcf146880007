"""The daemon is stopped, and killed, while clients are in the middle of downloads and pushes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.support.daemon import Daemon, running
from tests.integration.support.images import noise
from tests.integration.support.registry_client import RegistryClient, digest_of, with_digest
from tests.integration.support.rig import EngineAddress

NOBODY = EngineAddress("nobody", "unix:///nonexistent/docker.sock")
# More than the kernel takes of a connection whose client reads nothing.
LAYER = noise(32 << 20, "stopping")
PATH = f"/v2/app/blobs/{digest_of(LAYER)}"
CLIENTS = 20
# Seconds for a stop.  `docker stop` kills after 10.
SOON = 5.0


class Clients:
    """Clients in the middle of what they do, each in a thread of its own until its connection ends."""

    def __init__(self, daemon: Daemon) -> None:
        self.acknowledged: list[str] = []
        self.refused: list[int] = []
        self.whole = 0
        self._host = daemon.host
        self._over = threading.Event()
        self._ready = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def begin(self) -> None:
        """Start them all.  Returns when each has begun."""
        for number in range(CLIENTS):
            for what in (self._download, self._read_nothing, self._push, self._push_a_part, self._keep_idle):
                self._threads.append(threading.Thread(target=_until_the_end, args=(what, number), daemon=True))
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            assert self._ready.acquire(timeout=60)

    def wait(self) -> None:
        """Wait for their ends, once the daemon has ended."""
        self._over.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _wait_for_end(self, connection: http.client.HTTPConnection) -> None:
        """Read nothing while the daemon runs, and then what the kernel still has of it."""
        self._over.wait()
        while connection.sock.recv(1 << 20):
            pass

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, timeout=60)

    def _download(self, number: int) -> None:
        """At a pace at which it takes two seconds, or half a minute."""
        with contextlib.closing(self._connect()) as connection:
            connection.request("GET", PATH)
            answer = connection.getresponse()
            received = 0
            while data := answer.read(1 << 16):
                if not received:
                    self._ready.release()
                received += len(data)
                self._over.wait(0.06 if number % 2 else 0.004)
            self.whole += received == len(LAYER)

    def _read_nothing(self, number: int) -> None:
        with contextlib.closing(self._connect()) as connection:
            connection.request("GET", PATH)
            assert connection.sock.recv(12) == b"HTTP/1.1 200"
            self._ready.release()
            self._wait_for_end(connection)

    def _push(self, number: int) -> None:
        """One blob after the other."""
        client = RegistryClient(self._host, keep_alive=True)
        for count in range(1 << 30):
            data = os.urandom(100_000 * (number + 1))
            digest = digest_of(data)
            location = client.begin("pushed").location
            if not count:
                self._ready.release()
            answer = client.ask("PUT", with_digest(location, digest), data)
            if answer.status != 201:
                self.refused.append(answer.status)
                break
            self.acknowledged.append(digest)

    def _push_a_part(self, number: int) -> None:
        """The half of a blob, and then nothing."""
        location = RegistryClient(self._host).begin("part").location
        with contextlib.closing(self._connect()) as connection:
            connection.putrequest("PUT", with_digest(location, digest_of(LAYER)))
            connection.putheader("Content-Length", str(4 << 20))
            connection.endheaders(LAYER[: 2 << 20])
            self._ready.release()
            self.refused.append(connection.getresponse().status)

    def _keep_idle(self, number: int) -> None:
        with contextlib.closing(self._connect()) as connection:
            connection.request("GET", "/v2/")
            assert connection.getresponse().read() == b"{}"
            self._ready.release()
            self._wait_for_end(connection)


def _until_the_end(what: Callable[[int], None], number: int) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        what(number)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@contextlib.contextmanager
def busy(tmp_path: Path) -> Iterator[tuple[Daemon, Clients]]:
    with running(NOBODY, tmp_path) as daemon:
        RegistryClient(daemon.host).push_blob("app", LAYER)
        clients = Clients(daemon)
        clients.begin()
        time.sleep(1)
        yield daemon, clients


def check_kept(daemon: Daemon, state: Path, clients: Clients) -> None:
    """Everything acknowledged is there, and nothing else but what was being acknowledged."""
    client = RegistryClient(daemon.host, keep_alive=True)
    assert clients.acknowledged
    for digest in clients.acknowledged:
        answer = client.get(f"/v2/pushed/blobs/{digest}")
        assert (answer.status, digest_of(answer.body)) == (200, digest)
    assert list((state / "staging").iterdir()) == []
    files = [path for path in (state / "blobs").rglob("*") if path.is_file()]
    assert len(clients.acknowledged) + 1 <= len(files) <= len(clients.acknowledged) + 1 + CLIENTS
    assert client.delete(PATH).status == 202
    assert len([path for path in (state / "blobs").rglob("*") if path.is_file()]) == len(files) - 1


def test_a_stop_in_the_middle_of_transfers_takes_seconds_and_leaves_nothing(tmp_path: Path, state: Path) -> None:
    with busy(tmp_path) as (daemon, clients):
        began = time.monotonic()
        daemon.stop()
        took = time.monotonic() - began
        print(f"stopped in {took:.2f} s; {len(clients.acknowledged)} blobs acknowledged")
        assert took < SOON
        daemon.check_log()
        clients.wait()
        assert "client disconnected" not in daemon.log()  # they did not
        # The quick ones; and each that pushes a part.
        assert clients.whole == CLIENTS // 2
        assert set(clients.refused) == {503}
        assert len(clients.refused) >= CLIENTS
        assert list((state / "staging").iterdir()) == []
        assert json.loads((state / "session").read_text())["clean"] is True
        daemon.start()
        check_kept(daemon, state, clients)


def test_a_kill_in_the_middle_of_transfers_leaves_nothing_at_the_next_start(tmp_path: Path, state: Path) -> None:
    with busy(tmp_path) as (daemon, clients):
        daemon.kill()
        clients.wait()
        daemon.start()
        check_kept(daemon, state, clients)
