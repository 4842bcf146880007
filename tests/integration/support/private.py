"""A registry that wants a user name and a password, and clients that show one, or none, or a wrong one."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import socket
import socketserver
import threading
import uuid
from collections.abc import Mapping

from attrs import frozen

from tests.integration.support import rig
from tests.integration.support.images import LayerMaker
from tests.integration.support.upstream import Upstream


def basic(username: str, password: str) -> str:
    """The value of an `Authorization` header."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


class PrivateUpstream(Upstream):
    """The rig's registry with a password: `K3DREG_TEST_REGISTRY_AUTH`, which is `USER:PASSWORD@HOST:PORT`."""

    def __init__(self) -> None:
        login, _, address = rig.setting("K3DREG_TEST_REGISTRY_AUTH").rpartition("@")
        super().__init__(address)
        self.username, _, self.password = login.partition(":")

    @property
    def authorization(self) -> str:
        return basic(self.username, self.password)

    def _request(self, method: str, path: str, body: bytes = b"", content_type: str = "") -> http.client.HTTPResponse:
        headers = {"Authorization": self.authorization} | ({"Content-Type": content_type} if content_type else {})
        return request(self.address, method, path, headers, body)[0]


@frozen
class SmallImage:
    """An image that no engine has seen before."""

    registry: str
    repository: str
    digest: str

    @property
    def name(self) -> str:
        return f"{self.registry}/{self.repository}:1"


def push_small_image(upstream: Upstream, purpose: str) -> SmallImage:
    """Two layers of random bytes, tagged `1`, under a name of its own."""
    repository = f"k3dreg-{purpose}-{uuid.uuid4().hex[:12]}"
    return SmallImage(upstream.address, repository, retag(upstream, repository))


def retag(upstream: Upstream, repository: str) -> str:
    """Push another image under the tag `1`; returns its digest."""
    layers = []
    for name in ("one", "two"):
        maker = LayerMaker({})
        maker.file(name, os.urandom(200_000))
        layers.append(maker.layer(0))
    return str(upstream.push_image(repository, "1", layers, ["/one"])["digest"])


def request(
    host: str, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(host, timeout=120)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def manifest_path(image: SmallImage, reference: str = "1") -> str:
    return f"/v2/{image.repository}/manifests/{reference}?ns={image.registry}"


class Door:
    """Another address for a registry, which can be closed."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        target = (host, int(port))

        class Through(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(target) as far:
                    near: socket.socket = self.request
                    back = threading.Thread(target=_copy, args=(far, near), daemon=True)
                    back.start()
                    _copy(near, far)
                    back.join()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", 0), Through)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Door:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _copy(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_WR)
