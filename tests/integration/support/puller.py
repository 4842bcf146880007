"""A client of a registry that believes nothing: it asks for an image's parts and checks every byte."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from attrs import frozen

ACCEPT = ", ".join(
    [
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "*/*",
    ]
)
_CHUNK = 256 * 1024


class Broken(Exception):
    """The answer was refused or broke off; nothing wrong was handed over as whole."""


@frozen
class Answer:
    """A manifest as it was served."""

    status: int
    media_type: str
    digest: str
    body: bytes
    after: str | None = None  # seconds after which to ask again

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value


class Puller:
    """One client with one connection at a time to the registry at HOST:PORT.

    `namespace` is the registry host that images are asked for, as a node tells it to its mirror.  For `max_wait`
    seconds it asks for an image again when it is told to (`Retry-After`), as a kubelet does.
    """

    def __init__(self, host: str, namespace: str = "", timeout: float = 300, max_wait: float = 0) -> None:
        self._connection = http.client.HTTPConnection(host, timeout=timeout)
        self._max_wait = max_wait
        self._query = f"?ns={quote(namespace, safe='')}" if namespace else ""

    def close(self) -> None:
        self._connection.close()

    def manifest(self, repository: str, reference: str, method: str = "GET") -> Answer:
        """The answer, whatever its status.  Asserts that headers and body agree."""
        path = f"/v2/{repository}/manifests/{reference}{self._query}"
        self._connection.request(method, path, headers={"Accept": ACCEPT})
        response = self._connection.getresponse()
        body = response.read()
        digest = response.headers.get("Docker-Content-Digest", "")
        if response.status == 200 and method == "GET":
            assert digest == "sha256:" + hashlib.sha256(body).hexdigest()
            assert int(response.headers["Content-Length"]) == len(body)
        after = response.headers.get("Retry-After")
        return Answer(response.status, response.headers.get("Content-Type", ""), digest, body, after)

    def open_blob(self, repository: str, digest: str, begin: int = 0) -> http.client.HTTPResponse:
        """The answer, unread.  Raises `Broken` for an error."""
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        try:
            self._connection.request("GET", f"/v2/{repository}/blobs/{digest}{self._query}", headers=headers)
            response = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise Broken(f"{digest}: {error!r}") from error
        if response.status not in (200, 206):
            raise Broken(f"{digest}: {response.status} {response.read()[:500].decode(errors='replace')}")
        return response

    def blob(self, repository: str, digest: str, size: int, halfway: Callable[[], object] | None = None) -> int:
        """Read all of it.  Returns its size; raises `Broken` when it was not whole.

        Asserts that a body that ended properly is the right one: that is the promise that may never be broken.
        `halfway` is called once, when the first bytes have come.
        """
        response = self.open_blob(repository, digest)
        assert int(response.headers["Content-Length"]) == size, (
            f"{digest}: {response.headers['Content-Length']} is not {size}"
        )
        return read_whole(response, digest, size, halfway)

    def layers(self, repository: str, reference: str) -> list[tuple[str, int]]:
        """(digest, size) of the config and the layers of an image.  Of an index, the first platform's."""
        end = time.monotonic() + self._max_wait
        while (answer := self.manifest(repository, reference)).after and time.monotonic() < end:
            time.sleep(float(answer.after or 0))
        if answer.status != 200:
            raise Broken(f"{repository}:{reference}: {answer.status} {answer.body[:500].decode(errors='replace')}")
        manifest = answer.json
        if "manifests" in manifest:
            return self.layers(repository, manifest["manifests"][0]["digest"])
        return [(part["digest"], part["size"]) for part in [manifest["config"], *manifest["layers"]]]

    def image(self, repository: str, reference: str) -> int:
        """Pull everything and check it.  Returns the bytes of all blobs.  Raises `Broken`."""
        return sum(self.blob(repository, digest, size) for digest, size in self.layers(repository, reference))


def read_whole(
    response: http.client.HTTPResponse, digest: str, size: int, halfway: Callable[[], object] | None = None
) -> int:
    """As `Puller.blob`, for an answer that is open."""
    hashed, length = hashlib.sha256(), 0
    try:
        for chunk in chunks(response):
            hashed.update(chunk)
            length += len(chunk)
            if halfway is not None:
                halfway()
                halfway = None
    except (OSError, http.client.HTTPException) as error:
        raise Broken(f"{digest}: {length} of {size} bytes, then {error!r}") from error
    if length < size:
        # http.client does not tell a body that is too short when it is read in parts.
        response.close()
        raise Broken(f"{digest}: {length} of {size} bytes, then the connection was closed")
    assert digest == "sha256:" + hashed.hexdigest(), f"{digest}: {length} wrong bytes were served as whole"
    return length


def chunks(response: http.client.HTTPResponse) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_CHUNK))
    while read := response.readinto(buffer):
        yield buffer[:read]


class LazyReader:
    """A client that asks for a blob and does not read the answer until `read` is called: its window stays small."""

    def __init__(self, host: str, namespace: str, repository: str, digest: str) -> None:
        self._digest = digest
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        self._socket.settimeout(300)
        address, _, port = host.rpartition(":")
        self._socket.connect((address, int(port)))
        path = f"/v2/{repository}/blobs/{digest}?ns={quote(namespace, safe='')}"
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())

    def read(self, size: int) -> int:
        """Read on to the end, as `Puller.blob`."""
        response = http.client.HTTPResponse(self._socket)
        response.begin()
        if response.status != 200:
            raise Broken(f"{self._digest}: {response.status}")
        return read_whole(response, self._digest, size)

    def close(self) -> None:
        self._socket.close()
