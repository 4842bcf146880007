"""A registry that does as it is told: it holds images, and for some requests it refuses, stalls or breaks off.

Unlike the registries of `tests/fakes` it runs in threads of its own, beside tests that wait for real programs.
"""

from __future__ import annotations

import base64
import os
import re
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Sequence
from http.client import responses

from attrs import evolve, frozen

from tests.integration.support.images import LayerMaker
from tests.integration.support.upstream import CONFIG, INDEX, MANIFEST, Json, Layer, digest_of, to_json


@frozen
class Reply:
    """What is answered.  `after` is how many seconds pass before it.

    `cut`: after so many bytes of the body the connection ends: closed, or with `reset` torn down.  None as `status`
    stands for no answer at all.  `once`: the next such request is answered as if nothing had been said about it.
    """

    status: int | None = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    after: float = 0
    cut: int | None = None
    reset: bool = False
    once: bool = False


def refusal(status: int, code: str = "UNKNOWN", message: str = "the words of a registry", **headers: str) -> Reply:
    """An error as registries word it (distribution-spec 1.1, "Error Codes")."""
    body = to_json({"errors": [{"code": code, "message": message}]})
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Reply(status, (("Content-Type", "application/json"), *named), body)


@frozen
class ScriptedImage:
    """`contents` are manifests by digest, each with its media type, and blobs (media type "")."""

    root: str
    contents: dict[str, tuple[str, bytes]]
    layers: tuple[str, ...] = ()


def an_image(layers: Sequence[Layer] = (), architecture: str = "amd64", command: str = "/x") -> ScriptedImage:
    """An image like no other; without `layers` it has one, of 200 KB that do not compress."""
    if not layers:
        maker = LayerMaker({})
        maker.file("x", os.urandom(200_000), 0o755)
        layers = [maker.layer(0)]
    config = to_json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": [command]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
    )
    manifest = to_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest_of(config), "size": len(config)},
            "layers": [layer.descriptor for layer in layers],
        }
    )
    blobs = {digest_of(data): ("", data) for data in (config, *(layer.data for layer in layers))}
    root = digest_of(manifest)
    return ScriptedImage(root, {root: (MANIFEST, manifest), **blobs}, tuple(digest_of(each.data) for each in layers))


def an_index(images: Sequence[tuple[ScriptedImage, str]]) -> ScriptedImage:
    """An index of images, each with the architecture that it is said to be for."""
    entries: list[Json] = []
    contents: dict[str, tuple[str, bytes]] = {}
    for image, architecture in images:
        media_type, data = image.contents[image.root]
        platform = {"architecture": architecture, "os": "linux"}
        entries.append({"mediaType": media_type, "digest": image.root, "size": len(data), "platform": platform})
        contents |= image.contents
    index = to_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
    return ScriptedImage(digest_of(index), {digest_of(index): (INDEX, index), **contents})


class Scripted:
    """The registry.  `address` is HOST:PORT; `seen` has each request as `METHOD path` or `METHOD path authorized`.

    `login` is the `USER:PASSWORD` that it wants, "" for none.
    `rules` are tried in order: the first whose regular expression is found in such a line answers the request.  A rule
    whose reply has status 200 and no body leaves that to what is held, and changes how it is sent.
    """

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.rules: list[tuple[str, Reply]] = []
        self.seen: list[str] = []
        self.login = ""
        self._tags: dict[tuple[str, str], str] = {}
        self._contents: dict[str, tuple[str, bytes]] = {}
        registry = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                registry._serve(self.request, tls)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 50

        self._server = Server((host, 0), Handler)
        self.address = f"{host}:{self._server.server_address[1]}"

    def __enter__(self) -> Scripted:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def hold(self, repository: str, image: ScriptedImage, tag: str = "1") -> None:
        """Serve the image, under a name."""
        self._tags[repository, tag] = image.root
        self._contents |= image.contents

    def asked(self, pattern: str) -> int:
        """How many requests were like it."""
        return sum(bool(re.search(pattern, seen)) for seen in self.seen)

    def _serve(self, connection: socket.socket, tls: ssl.SSLContext | None) -> None:
        connection.settimeout(60)
        try:
            if tls is not None:
                connection = tls.wrap_socket(connection, server_side=True)
            while (head := _read_head(connection)) is not None:
                if head.startswith(b"\x16"):
                    # Engines go on with plain HTTP if the answer to their TLS hello begins with it.
                    connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
                    return
                text = head.decode("latin-1")
                method, path = text.split(" ")[:2]
                line = f"{method} {path}" + (" authorized" if "\nauthorization:" in text.lower() else "")
                self.seen.append(line)
                if not _send(connection, method, self._reply(line, path, text)):
                    return
        except OSError:
            pass  # it hung up, which clients may
        finally:
            connection.close()

    def _reply(self, line: str, path: str, head: str) -> Reply:
        rule = next((rule for rule in self.rules if re.search(rule[0], line)), None)
        if rule is None:
            right = f"Basic {base64.b64encode(self.login.encode()).decode()}"
            if self.login and right not in head:
                return refusal(401, "UNAUTHORIZED", "authentication required", WWW_Authenticate='Basic realm="tests"')
            return self._found(path.partition("?")[0], head)
        told = rule[1]
        if told.once:
            self.rules.remove(rule)
        if told.status != 200 or told.body:
            return told
        return evolve(self._found(path.partition("?")[0], head), after=told.after, cut=told.cut, reset=told.reset)

    def _found(self, path: str, head: str) -> Reply:
        if path == "/v2/":
            return Reply(200, (), b"{}")
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/(.+)", path)
        if match is None:
            return refusal(404, "UNSUPPORTED")
        digest = self._tags.get((match[1], match[3]), match[3])
        if digest not in self._contents:
            return refusal(404, "MANIFEST_UNKNOWN", "manifest unknown")
        media_type, data = self._contents[digest]
        headers = (("Content-Type", media_type or "application/octet-stream"), ("Docker-Content-Digest", digest))
        asked = re.search(r"^range: bytes=(\d+)-", head, re.IGNORECASE | re.MULTILINE)
        if asked is not None and int(asked[1]):
            start = int(asked[1])
            where = ("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            return Reply(206, (*headers, where), data[start:])
        return Reply(200, headers, data)


def _read_head(connection: socket.socket) -> bytes | None:
    """Up to the empty line; None when the client is gone.  A TLS hello has no lines, and is given as it comes."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(65536)
        if not data:
            return None
        head += data
        if head.startswith(b"\x16"):
            break
    return head


def _send(connection: socket.socket, method: str, reply: Reply) -> bool:
    """Whether the connection can be used for another request."""
    time.sleep(reply.after)
    if reply.status is not None:
        fields = (*reply.headers, ("Content-Length", str(len(reply.body))))
        head = f"HTTP/1.1 {reply.status} {responses.get(reply.status, 'Unknown')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in fields) + "\r\n"
        body = b"" if method == "HEAD" else reply.body
        connection.sendall(head.encode("latin-1") + body[: reply.cut])
        if method == "HEAD" or reply.cut is None:
            return True
        time.sleep(0.05)  # so that what was sent is read before a reset overtakes it
    if reply.reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False
