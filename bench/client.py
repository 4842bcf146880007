"""A client that costs little: it reads an image's blobs into one buffer and throws them away."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from attrs import frozen

# A containerd node fetches three layers of an image at a time.
_CONNECTIONS = 3
_BUFFER = 1 << 20
_ACCEPT = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"
)


@frozen
class Pulled:
    """What one or several clients took, in bytes, and how long it was, in seconds, until the last one had all."""

    size: int
    seconds: float


class Image:
    """An image in the registry at HOST:PORT.  `namespace` is what a node tells its mirror: the image's own registry."""

    def __init__(self, host: str, namespace: str, repository: str, tag: str, check: bool) -> None:
        self._host = host
        self._base = f"/v2/{repository}"
        self._query = f"?ns={quote(namespace, safe='')}" if namespace else ""
        self._tag = tag
        self._check = check

    def pull(self, clients: int) -> Pulled:
        """By so many clients at the same time, each of them three blobs at a time."""
        started = time.monotonic()
        with ThreadPoolExecutor(clients) as threads:
            size = sum(threads.map(lambda _: self._pull(), range(clients)))
        return Pulled(size, time.monotonic() - started)

    def _pull(self) -> int:
        parts = self._parts(http.client.HTTPConnection(self._host, timeout=300), self._tag)
        mine = threading.local()

        def blob(part: dict[str, Any]) -> int:
            if not hasattr(mine, "connection"):
                mine.connection = http.client.HTTPConnection(self._host, timeout=300)
                mine.buffer = memoryview(bytearray(_BUFFER))
            return self._blob(mine.connection, mine.buffer, part)

        with ThreadPoolExecutor(_CONNECTIONS) as threads:
            return sum(threads.map(blob, parts))

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
