"""What the daemon does when it may open few files: everyone is answered, and what is under way goes on."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.support.daemon import Daemon, running
from tests.integration.support.images import noise
from tests.integration.support.registry_client import RegistryClient, digest_of
from tests.integration.support.rig import EngineAddress

NOBODY = EngineAddress("nobody", "unix:///nonexistent/docker.sock")
# More than the kernel takes of a connection whose client reads nothing.
SIZE = 32 << 20
CLIENTS = 150
LIMIT = 64


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that may open `LIMIT` files, and cannot raise that."""
    prlimit = shutil.which("prlimit")
    assert prlimit
    with running(NOBODY, tmp_path, before=[prlimit, f"--nofile={LIMIT}:{LIMIT}"]) as started:
        yield started


class Download:
    """A download of which the first bytes are read, and the rest when `rest` is called."""

    def __init__(self, daemon: Daemon, path: str) -> None:
        self._connection = http.client.HTTPConnection(daemon.host, timeout=60)
        self._connection.request("GET", path)
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200
        self._hash = hashlib.sha256(self._answer.read(100))

    def rest(self) -> str:
        """The digest of the whole."""
        with contextlib.closing(self._connection):
            while data := self._answer.read(1 << 20):
                self._hash.update(data)
        return f"sha256:{self._hash.hexdigest()}"


def idle_client(daemon: Daemon) -> http.client.HTTPConnection:
    """A client that is answered and keeps its connection."""
    connection = http.client.HTTPConnection(daemon.host, timeout=30)
    connection.request("GET", "/v2/")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"{}")
    return connection


def test_clients_that_keep_their_connections_keep_nobody_out_and_cut_no_download(daemon: Daemon) -> None:
    layer = noise(SIZE, "descriptors")
    RegistryClient(daemon.host).push_blob("app", layer)
    download = Download(daemon, f"/v2/app/blobs/{digest_of(layer)}")
    clients: list[http.client.HTTPConnection] = []
    try:
        clients += [idle_client(daemon) for _ in range(CLIENTS)]
        assert RegistryClient(daemon.host).get(f"/v2/app/blobs/{digest_of(layer)}").status == 200
        assert download.rest() == digest_of(layer)
    finally:
        for client in clients:
            client.close()
    assert "EMFILE" not in daemon.log()
    assert 1 <= daemon.log().count("idle connection") <= 5


def test_clients_that_come_at_the_same_moment_are_all_answered(daemon: Daemon) -> None:
    name, _, port = daemon.host.partition(":")
    clients = []
    with contextlib.ExitStack() as stack:
        for _ in range(CLIENTS):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect((name, int(port)))
            clients.append(client)
        for client in clients:
            client.settimeout(60)
            with contextlib.suppress(OSError):
                client.connect((name, int(port)))
            client.sendall(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answers = [client.recv(100)[:12] for client in clients]
    assert answers == [b"HTTP/1.1 200"] * CLIENTS
    assert "EMFILE" not in daemon.log()


def test_who_comes_while_all_connections_are_busy_waits_for_one_of_them(daemon: Daemon) -> None:
    layer = noise(SIZE, "descriptors")
    path = f"/v2/app/blobs/{digest_of(layer)}"
    RegistryClient(daemon.host).push_blob("app", layer)
    name, _, port = daemon.host.partition(":")
    with contextlib.ExitStack() as stack:
        slow = []
        for _ in range(LIMIT // 2):
            client = stack.enter_context(socket.create_connection((name, int(port)), timeout=30))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            slow.append(client)
        daemon.wait_for(r"all \d+ connections .* are busy")
        began = [client for client in slow if has_answer(client)]
        waiting = [client for client in slow if client not in began]
        assert began
        assert waiting
        began[0].close()
        assert waiting[0].recv(12) == b"HTTP/1.1 200"
    idle_client(daemon).close()
    assert "EMFILE" not in daemon.log()


def has_answer(client: socket.socket) -> bool:
    """Whether its answer has begun."""
    client.settimeout(1)
    try:
        return client.recv(12) == b"HTTP/1.1 200"
    except TimeoutError:
        return False
    finally:
        client.settimeout(30)


def test_a_blob_whose_file_cannot_be_opened_for_want_of_descriptors_is_asked_for_again(tmp_path: Path) -> None:
    layer = noise(5 << 20, "descriptors")
    path = f"/v2/app/blobs/{digest_of(layer)}"
    with running(NOBODY, tmp_path) as daemon:
        RegistryClient(daemon.host).push_blob("app", layer)
        client = idle_client(daemon)
        limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        highest = max(int(number) for number in os.listdir(f"/proc/{daemon.pid}/fd"))
        fillers = [idle_client(daemon) for _ in range(5)]  # no number below is free
        now = [int(number) for number in os.listdir(f"/proc/{daemon.pid}/fd")]
        free = next(number for number in range(highest + 10) if number not in now)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (free, limits[1]))
        since = len(daemon.log())
        for method, where, body in (
            ("GET", path, None),
            ("POST", f"/v2/app/blobs/uploads/?digest={digest_of(b'new')}", b"new"),
        ):
            client.request(method, where, body)
            answer = client.getresponse()
            told = answer.read()
            assert answer.status == 503, (method, answer.status, told)
            assert int(answer.headers["Retry-After"]) > 0
            assert b"files" in told
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
        client.request("GET", path)
        assert digest_of(client.getresponse().read()) == digest_of(layer)
        assert "Traceback" not in daemon.log()[since:]
        for filler in (client, *fillers):
            filler.close()
