"""What it costs that k3dreg is watched: requests per second with and without metrics and status page.

    python bench/insight.py [--seconds 5] [--rounds 3] [--clients 4]

No engine and no network is needed: what is asked for was pushed before.  README.md beside this file says more.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import shlex
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Process, Queue
from pathlib import Path

from attrs import frozen

sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench import servers

# Nobody listens there.
_NO_ENGINE = "unix:///run/k3dreg-bench-no-engine.sock"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
# Bytes of the blob: as a config has, so that it is the request that counts.
_BLOB = 4096

VARIANTS = ("without", "with", "watched")


@frozen
class Request:
    """`bytes` to send, again and again on one connection, for which each answer is `length` bytes of body."""

    name: str
    data: bytes
    length: int


def unobserved(arguments: list[str]) -> None:
    """Be a k3dreg whose packages report to no observer: there is no option for it, as there is no reason to want it."""
    from k3dreg.cli import main
    from k3dreg.daemon import service
    from k3dreg.reporting.observer import NULL_OBSERVER
    from k3dreg.status.monitor import Monitor

    # Only here: where it is put to use, there is no way to do without it.
    make: Callable[..., Monitor] = vars(service)["make_monitor"]

    def make_blind(*given: object, **named: object) -> Monitor:
        monitor = make(*given, **named)
        monitor.observer = NULL_OBSERVER
        return monitor

    setattr(service, "make_monitor", make_blind)  # noqa: B010  (it is not this module's to export)
    main(arguments)


def prepare(host: str) -> list[Request]:
    """Push an image of one blob; returns what is asked for then."""
    blob = b"x" * _BLOB
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    config = {"mediaType": _CONFIG, "digest": digest, "size": _BLOB}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": []}).encode()
    connection = http.client.HTTPConnection(host, timeout=60)

    def send(method: str, path: str, body: bytes = b"", **headers: str) -> http.client.HTTPResponse:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (201, 202), answer.status
        return answer

    location = send("POST", "/v2/bench/blobs/uploads/").headers["Location"]
    send("PUT", f"{location}?digest={digest}", blob)
    send("PUT", "/v2/bench/manifests/1", manifest, **{"Content-Type": _MANIFEST})
    head = f" HTTP/1.1\r\nHost: {host}\r\nAccept: {_MANIFEST}\r\n\r\n"
    return [
        Request("HEAD manifest", f"HEAD /v2/bench/manifests/1{head}".encode(), 0),
        Request("GET blob", f"GET /v2/bench/blobs/{digest}{head}".encode(), _BLOB),
    ]


def ask(host: str, request: Request, seconds: float, counts: Queue[int]) -> None:
    """One client: as many requests as there is time for, one after the other on one connection."""
    address, _, port = host.rpartition(":")
    with socket.create_connection((address, int(port))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        count, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            connection.sendall(request.data)
            received = b""
            while (split := received.find(b"\r\n\r\n")) < 0 or len(received) - split - 4 < request.length:
                data = connection.recv(65536)
                assert data, "the connection was closed"
                received += data
            assert received.startswith(b"HTTP/1.1 200"), received[:200]
            count += 1
    counts.put(count)


@contextlib.contextmanager
def watched(host: str) -> Iterator[None]:
    """The status page is open, and a Prometheus asks every second, for the time of a `with`."""
    done = threading.Event()
    page = http.client.HTTPConnection(host, timeout=60)
    page.request("GET", "/events")
    stream = page.getresponse()

    def read() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
            while not done.is_set() and stream.read1(65536):
                pass

    def scrape() -> None:
        connection = http.client.HTTPConnection(host, timeout=60)
        while not done.wait(1):
            connection.request("GET", "/metrics")
            connection.getresponse().read()

    threads = [threading.Thread(target=read, daemon=True), threading.Thread(target=scrape, daemon=True)]
    for thread in threads:
        thread.start()
    yield
    done.set()
    threads[1].join()


def measure(variant: str, command: list[str], clients: int, seconds: float) -> dict[str, tuple[float, float]]:
    """Requests per second, and milliseconds of the server's processor for each, by what is asked for."""
    if variant == "without":
        command = [sys.executable, str(Path(__file__).resolve()), "--unobserved"]
    options = ["--status-page", "off"] if variant == "without" else []
    found = {}
    with servers.k3dreg([*command, *options], _NO_ENGINE) as server:
        requests = prepare(server.host)
        with watched(server.host) if variant == "watched" else contextlib.nullcontext():
            for request in requests:
                counts: Queue[int] = Queue()
                ask(server.host, request, min(0.5, seconds), counts)  # so that nothing is done for the first time below
                counts.get()
                before = server.cpu() or 0.0
                asking = [Process(target=ask, args=(server.host, request, seconds, counts)) for _ in range(clients)]
                for client in asking:
                    client.start()
                total = sum(counts.get(timeout=seconds + 60) for _ in asking)
                for client in asking:
                    client.join()
                found[request.name] = (total / seconds, ((server.cpu() or 0.0) - before) * 1000 / total)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--unobserved"]:
        unobserved(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k3dreg", default=str(Path(sys.executable).with_name("k3dreg")), help="words that start it")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        # In turns, so that whatever else the machine does befalls all of them.
        for variant in VARIANTS:
            told = measure(variant, shlex.split(options.k3dreg), options.clients, options.seconds)
            for name, figures in told.items():
                rows.setdefault((name, variant), []).append(figures)
    print("| | metrics and page | requests/s | CPU ms/request | ÷ without |\n|---|---|---|---|---|")
    for (name, variant), measured in sorted(rows.items(), key=lambda row: (row[0][0], VARIANTS.index(row[0][1]))):
        rate, cpu = (statistics.median(each[column] for each in measured) for column in (0, 1))
        without = statistics.median(each[1] for each in rows[name, "without"])
        print(f"| {name} | {variant} | {rate:.0f} | {cpu:.3f} | {cpu / without:.2f} |")


if __name__ == "__main__":
    main()
