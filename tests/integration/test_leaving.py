"""Clients that leave in the middle, and those who come at the same moment."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration.support.daemon import running
from tests.integration.support.images import noise
from tests.integration.support.registry_client import RegistryClient, digest_of
from tests.integration.support.rig import EngineAddress

NOBODY = EngineAddress("nobody", "unix:///nonexistent/docker.sock")
# More than the kernel takes of a connection whose client reads nothing.
SIZE = 32 << 20
LEAVING, COMING = 8, 4
# Leaving clients by the dozen a second: without care, one in a few hundred took somebody else with it.
SECONDS = 12


def test_who_leaves_in_the_middle_ends_no_connection_but_his_own(tmp_path: Path) -> None:
    layer = noise(SIZE, "leaving")
    with running(NOBODY, tmp_path) as daemon:
        RegistryClient(daemon.host).push_blob("app", layer)
        path, end, failures = f"/v2/app/blobs/{digest_of(layer)}", time.monotonic() + SECONDS, list[str]()
        left, came = [0] * LEAVING, [0] * COMING

        def leave(number: int) -> None:
            name, _, port = daemon.host.partition(":")
            with contextlib.closing(socket.create_connection((name, int(port)), timeout=30)) as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                time.sleep(0.03)  # until the connection is full
                assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
            left[number] += 1

        def come(number: int) -> None:
            with contextlib.closing(http.client.HTTPConnection(daemon.host, timeout=30)) as connection:
                connection.request("GET", "/v2/")
                assert connection.getresponse().status == 200
            came[number] += 1

        def go_on(what: Callable[[int], None], number: int) -> None:
            while time.monotonic() < end:
                try:
                    what(number)
                except (OSError, http.client.HTTPException, AssertionError) as error:
                    failures.append(f"{what.__name__}: {error!r}")

        threads = [threading.Thread(target=go_on, args=(leave, number)) for number in range(LEAVING)]
        threads += [threading.Thread(target=go_on, args=(come, number)) for number in range(COMING)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"{sum(left)} left, {sum(came)} came")
        assert failures == []
        assert sum(left) > 100
        assert sum(came) > 100
