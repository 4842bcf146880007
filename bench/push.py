"""Pushes blobs into k3dreg and into Debian's docker-registry, and prints what each took.

    python bench/push.py --k3dreg k3dreg --registry-binary docker-registry [--size 500] [--clients 1 8]

Clients are threads that send bytes made beforehand: they cost little, and both servers have the same.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import itertools
import os
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench import servers

_CHUNK = 1024 * 1024
_COUNTER = itertools.count()


@frozen
class Blob:
    """`size` MiB that no other blob has, without being held in memory: one block again and again, after its number."""

    number: int
    size: int
    digest: str

    @classmethod
    def make(cls, block: bytes, size: int) -> Blob:
        number = next(_COUNTER)
        hasher = hashlib.sha256()
        for piece in pieces(block, number, size):
            hasher.update(piece)
        return cls(number, size, f"sha256:{hasher.hexdigest()}")


def pieces(block: bytes, number: int, size: int) -> Iterator[bytes]:
    yield b"%16d" % number + block[16:]
    for _ in range(size - 1):
        yield block


def push(host: str, block: bytes, blob: Blob, way: str) -> None:
    """One blob, as containerd's clients (`put`) or Docker's classic push (`patch`, chunked) send it."""
    connection = http.client.HTTPConnection(host, timeout=600)

    def ask(
        method: str, path: str, body: Iterator[bytes] | None = None, length: int | None = 0
    ) -> http.client.HTTPResponse:
        # Without a length the body is sent chunked.
        connection.request(method, path, body, {} if length is None else {"Content-Length": str(length)})
        response = connection.getresponse()
        response.read()
        if response.status >= 300:
            raise SystemExit(f"{method} {path}: {response.status}")
        return response

    def place(response: http.client.HTTPResponse, query: str = "") -> str:
        location = response.headers["Location"].removeprefix(f"http://{host}")
        return f"{location}{'&' if '?' in location else '?'}{query}" if query else location

    answer = ask("POST", f"/v2/bench/r{blob.number}/blobs/uploads/")
    body = pieces(block, blob.number, blob.size)
    if way == "put":
        ask("PUT", place(answer, f"digest={blob.digest}"), body, blob.size * _CHUNK)
    else:
        answer = ask("PATCH", place(answer), body, None)
        ask("PUT", place(answer, f"digest={blob.digest}"))
    connection.close()


def measure(server: servers.Server, block: bytes, size: int, clients: int, way: str) -> float:
    """Seconds for `clients` at once to push a blob each."""
    blobs = [Blob.make(block, size) for _ in range(clients)]
    failed: list[BaseException] = []

    def work(blob: Blob) -> None:
        try:
            push(server.host, block, blob, way)
        except BaseException as error:  # noqa: BLE001  (told in the main thread)
            failed.append(error)

    threads = [threading.Thread(target=work, args=(blob,)) for blob in blobs]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k3dreg", default="k3dreg", help="the command, with its options")
    parser.add_argument("--registry-binary", default="", help="docker-registry; may begin with `chroot DIR`")
    parser.add_argument("--size", type=int, default=500, help="MiB of a blob")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    block = os.urandom(_CHUNK)
    started: list[tuple[str, Callable[[], contextlib.AbstractContextManager[servers.Server]]]] = [
        ("k3dreg", lambda: servers.k3dreg(shlex.split(arguments.k3dreg), "unix:///nonexistent/docker.sock"))
    ]
    if arguments.registry_binary:
        started.append(("docker-registry", lambda: _registry(shlex.split(arguments.registry_binary))))
    print(f"{'server':16} {'way':6} {'clients':>7} {'seconds':>8} {'MB/s':>7} {'CPU s/GB':>9} {'peak MB':>8}")
    for clients, way, _ in itertools.product(arguments.clients, ("put", "patch"), range(arguments.rounds)):
        taken: dict[str, float] = {}
        for name, start in started:
            os.sync()  # what the one before left to be written is none of this one's work
            with start() as server:
                before = server.cpu() or 0.0
                taken[name] = seconds = measure(server, block, arguments.size, clients, way)
                gigabytes = clients * arguments.size * _CHUNK / 1e9
                cpu = ((server.cpu() or 0.0) - before) / gigabytes
                memory = server.memory() or 0.0
            rate = gigabytes * 1000 / seconds
            print(f"{name:16} {way:6} {clients:7} {seconds:8.2f} {rate:7.0f} {cpu:9.2f} {memory:8.0f}", flush=True)
        if len(taken) == 2:
            print(f"{'':16} k3dreg / docker-registry: {taken['k3dreg'] / taken['docker-registry']:.2f} of the time")


@contextlib.contextmanager
def _registry(command: list[str]) -> Iterator[servers.Server]:
    """With its data in a new directory, which lies inside the program's root where it has one of its own."""
    root = Path(command[1]) if command[0] == "chroot" else Path("/")
    directory = Path(tempfile.mkdtemp(prefix="k3dreg-bench-", dir=root / "var/tmp"))
    try:
        with servers.docker_registry(command, f"/{directory.relative_to(root)}", servers.free_address()) as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
