"""What asks others for credentials, or checks passwords, holds up neither blobs nor those whose password is right."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import bcrypt
import pytest

from tests.integration.support.daemon import Daemon, running
from tests.integration.support.private import basic
from tests.integration.support.rig import EngineAddress
from tests.integration.test_push_clients import NOBODY

USER, PASSWORD = "anna", "pa55-w0rd"


def ask(host: str, method: str, path: str, body: bytes | None = None, authorization: str = "") -> int:
    """The status of an answer; 0 for none."""
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request(method, path, body, {"Authorization": authorization} if authorization else {})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


@contextlib.contextmanager
def meanwhile(count: int, work: Callable[[int], object]) -> Iterator[None]:
    """Repeat `work` in so many threads."""
    stopping = threading.Event()

    def repeat(number: int) -> None:
        while not stopping.is_set():
            work(number)

    threads = [threading.Thread(target=repeat, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1)
        yield
    finally:
        stopping.set()


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of an AWS that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.engines("docker29")
def test_made_up_hosts_of_aws_hold_up_no_blobs(engine: EngineAddress, silent: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    daemon = Daemon(engine, tmp_path / "run/state", tmp_path / "run/log")
    daemon.environment = {
        "HOME": str(tmp_path),
        "PATH": "/nowhere",
        "AWS_ENDPOINT_URL": silent,
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "a-secret-key-of-nobody",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    daemon.start()
    name = f"k3dreg-{uuid.uuid4().hex[:8]}"

    def made_up(number: int) -> None:
        host = f"{number:012}.dkr.ecr.xx-made-{number}.amazonaws.com"
        ask(daemon.host, "HEAD", f"/v2/{name}/manifests/1?ns={host}")

    with meanwhile(24, made_up):
        began = time.monotonic()
        for _ in range(5):
            data = os.urandom(100_000)
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            assert ask(daemon.host, "POST", f"/v2/{name}/blobs/uploads/?digest={digest}", data) == 201
            assert ask(daemon.host, "GET", f"/v2/{name}/blobs/{digest}") == 200
        assert time.monotonic() - began < 8
        began = time.monotonic()
        daemon.stop()
        assert time.monotonic() - began < 8


@pytest.mark.parametrize("before", [True, False], ids=["verified before", "shown for the first time"])
@pytest.mark.parametrize("connections", [20, 100])
def test_wrong_passwords_keep_no_right_one_out(connections: int, before: bool, tmp_path: Path) -> None:
    htpasswd = tmp_path / "htpasswd"
    htpasswd.write_text(f"{USER}:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode()}\n")

    answered = itertools.count()

    def wrong(number: int) -> None:
        ask(daemon.host, "GET", "/v2/", authorization=basic(USER, uuid.uuid4().hex))
        next(answered)

    with running(NOBODY, tmp_path, "--htpasswd", str(htpasswd)) as daemon:
        right = basic(USER, PASSWORD)
        if before:
            assert ask(daemon.host, "GET", "/v2/", authorization=right) == 200
        with meanwhile(connections, wrong):
            guesses = next(answered)
            assert ask(daemon.host, "GET", "/v2/", authorization=right) == 200
            # If the guesses were checked first, about one for each connection would be answered meanwhile.
            assert next(answered) - guesses < connections / 2
            assert ask(daemon.host, "GET", "/v2/", authorization=basic(USER, "wrong")) in (401, 503)
            began = time.monotonic()
            daemon.stop()
            assert time.monotonic() - began < 5
