"""A client that costs little: it reads an image's blobs into one buffer and throws them away."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import socket
import statistics
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from attrs import frozen

# A containerd node fetches three layers of an image at a time.
_CONNECTIONS = 3
_BUFFER = 1 << 20
# As a node: a HEAD without `*/*` may be a push tool's, and k3dreg answers that one out of what was pushed alone.
_ACCEPT = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, "
    "*/*"
)


@frozen
class Pulled:
    """What one or several clients took, in bytes, and how long it was, in seconds, until the last one had all.

    `manifest` is how long it was until the first one had the manifest.
    """

    size: int
    seconds: float
    manifest: float = 0.0


class Image:
    """An image in the registry at HOST:PORT.  `namespace` is what a node tells its mirror: the image's own registry."""

    def __init__(self, host: str, namespace: str, repository: str, tag: str, check: bool) -> None:
        self._host = host
        self._base = f"/v2/{repository}"
        self._query = f"?ns={quote(namespace, safe='')}" if namespace else ""
        self._tag = tag
        self._check = check

    def pull(self, clients: int, held: Collection[str] = ()) -> Pulled:
        """By so many clients at the same time, each of them three blobs at a time, without those that they hold."""
        started = time.monotonic()
        known: list[float] = []
        with ThreadPoolExecutor(clients) as threads:
            size = sum(threads.map(lambda _: self._pull(known, held), range(clients)))
        return Pulled(size, time.monotonic() - started, min(known) - started)

    def heads(self, askers: int, each: int) -> tuple[float, float]:
        """HEADs of the tag by so many at the same time: the median of the seconds that one took, and how many a second.

        With little between it and the socket, so that it is the server that is measured.
        """
        path = f"{self._base}/manifests/{self._tag}{self._query}"
        question = f"HEAD {path} HTTP/1.1\r\nHost: {self._host}\r\nAccept: {_ACCEPT}\r\n\r\n".encode()
        return ask([("tcp", self._host)] * askers, question, each)

    def blobs(self) -> list[str]:
        """The digests of its config and layers."""
        return [part["digest"] for part in self._parts(http.client.HTTPConnection(self._host), self._tag)]

    def _pull(self, known: list[float], held: Collection[str]) -> int:
        parts = self._parts(http.client.HTTPConnection(self._host, timeout=300), self._tag)
        known.append(time.monotonic())
        mine = threading.local()

        def blob(part: dict[str, Any]) -> int:
            if not hasattr(mine, "connection"):
                mine.connection = http.client.HTTPConnection(self._host, timeout=300)
                mine.buffer = memoryview(bytearray(_BUFFER))
            return self._blob(mine.connection, mine.buffer, part)

        with ThreadPoolExecutor(_CONNECTIONS) as threads:
            return sum(threads.map(blob, (part for part in parts if part["digest"] not in held)))

    def _parts(self, connection: http.client.HTTPConnection, reference: str) -> Sequence[dict[str, Any]]:
        connection.request("GET", f"{self._base}/manifests/{reference}{self._query}", headers={"Accept": _ACCEPT})
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise SystemExit(f"{self._host}: {response.status} {body.decode(errors='replace')}")
        manifest = json.loads(body)
        if "manifests" in manifest:
            return self._parts(connection, manifest["manifests"][0]["digest"])
        return [manifest["config"], *manifest["layers"]]

    def _blob(self, connection: http.client.HTTPConnection, buffer: memoryview, part: dict[str, Any]) -> int:
        connection.request("GET", f"{self._base}/blobs/{part['digest']}{self._query}")
        response = connection.getresponse()
        length, hashed = 0, hashlib.sha256()
        while read := response.readinto(buffer):
            length += read
            if self._check:
                hashed.update(buffer[:read])
        if response.status != 200 or length != part["size"]:
            raise SystemExit(
                f"{self._host}: {part['digest']}: status {response.status}, {length} of {part['size']} bytes"
            )
        if self._check and part["digest"] != f"sha256:{hashed.hexdigest()}":
            raise SystemExit(f"{self._host}: {part['digest']}: wrong bytes")
        return length


def ask(addresses: Sequence[tuple[str, str]], question: bytes, each: int) -> tuple[float, float]:
    """Ask `question`, whose answer has no body or one of a known length, `each` times on a connection to each address.

    An address is ("tcp", "HOST:PORT") or ("unix", path).  Returns as `Image.heads`.
    """
    taken: list[float] = []

    def one(address: tuple[str, str]) -> None:
        with _connect(*address) as connection:
            for _ in range(each):
                started = time.perf_counter()
                connection.sendall(question)
                _read_answer(connection, question.startswith(b"HEAD"))
                taken.append(time.perf_counter() - started)

    started = time.perf_counter()
    with ThreadPoolExecutor(len(addresses)) as threads:
        list(threads.map(one, addresses))
    return statistics.median(taken), len(taken) / (time.perf_counter() - started)


def _connect(kind: str, address: str) -> socket.socket:
    if kind == "unix":
        unix = socket.socket(socket.AF_UNIX)
        unix.connect(address)
        return unix
    host, _, port = address.rpartition(":")
    tcp = socket.create_connection((host, int(port)))
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tcp


def _read_answer(connection: socket.socket, without_body: bool) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65536)
        if not received:
            raise SystemExit("a connection was closed in the middle of an answer")
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise SystemExit(f"{head!r} {body!r}")
    if without_body:
        return
    match = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    missing = (int(match[1]) if match else 0) - len(body)
    while missing > 0:
        missing -= len(connection.recv(65536))
