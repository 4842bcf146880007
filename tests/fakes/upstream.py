"""A registry that an image comes from, on a real socket of this machine, in the moods that registries have."""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from urllib.parse import parse_qs

from attrs import Factory, define
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from k3dreg.oci.digest import Digest


@define
class Seen:
    """A request that came."""

    method: str
    path: str
    host: str
    authorization: str
    range: str
    agent: str


@define
class FakeUpstream:
    """Everything public is for tests to set and to read.

    `auth` is "none", "basic" or "bearer": then `user`/`password` are wanted, by the registry or its token server,
    which is this server, too.  `anonymous_tokens` gives tokens to everybody.
    """

    auth: str = "none"
    user: str = "user"
    password: str = "Pa55-w0rd"
    identity_token: str = "identity-t0ken"
    anonymous_tokens: bool = False
    token_lifetime: float | None = 300
    realm: str = ""  # another token server
    blobs: dict[Digest, bytes] = Factory(dict)
    manifests: dict[str, tuple[str, bytes]] = Factory(dict)  # by tag or digest
    status: int = 0  # answer everything with this
    complaint: bytes = b'{"errors":[{"code":"WHATEVER","message":"the words of a registry"}]}'
    cut_after: list[int] = Factory(list)  # break the connection after that many bytes of a blob, one entry a request
    ranges: bool = True
    lengths: bool = True
    redirect: str = ""  # where blobs are: a base URL
    gate: Deferred[None] | None = None  # blobs send half, wait for this, and send the rest
    skew: int = 0  # bytes that the rest of a blob begins later than it was asked for
    endless: bool = False  # the bodies of challenges and redirects do not end
    seen: list[Seen] = Factory(list)
    port: Any = None
    factory: Any = None
    tokens: set[str] = Factory(set)

    def listen(self, reactor: Any) -> None:
        factory: WrappingFactory[_PlainOnly] = WrappingFactory(Site(_Resource(self)))
        factory.protocol = _PlainOnly
        self.port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.factory = factory

    async def stop(self) -> None:
        """Take no more connections, and end those that clients keep for later."""
        await self.port.stopListening()
        for connection in list(self.factory.protocols):
            lost: Deferred[None] = Deferred()
            connection.lost = lost
            connection.transport.abortConnection()
            await lost

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port.getHost().port}"

    def add_blob(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        self.blobs[digest] = data
        return digest

    def add_manifest(self, media_type: str, data: bytes, *tags: str) -> Digest:
        digest = Digest.of(data)
        for name in (str(digest), *tags):
            self.manifests[name] = (media_type, data)
        return digest

    def paths(self, kind: str) -> list[str]:
        return [seen.path for seen in self.seen if f"/{kind}" in seen.path]


class _PlainOnly(ProtocolWrapper):
    """Engines try TLS first, and go on with plain HTTP if the answer to their hello begins with `HTTP/`."""

    lost: Deferred[None] | None = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        if self.lost is not None:
            self.lost.callback(None)

    def dataReceived(self, data: bytes) -> None:
        if data.startswith(b"\x16"):
            assert self.transport is not None
            self.transport.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            self.transport.loseConnection()
        else:
            super().dataReceived(data)


class _Resource(Resource):
    isLeaf = True  # noqa: N815  (of twisted.web)

    def __init__(self, upstream: FakeUpstream) -> None:
        super().__init__()
        self._upstream = upstream

    def render(self, request: Request) -> int:
        up, path = self._upstream, request.path.decode()
        authorization, asked_range = (request.getHeader(name) or "" for name in ("authorization", "range"))
        up.seen.append(
            Seen(
                request.method.decode(),
                request.uri.decode(),
                request.getHeader("host") or "",
                authorization,
                asked_range,
                request.getHeader("user-agent") or "",
            )
        )
        if up.status:
            return _answer(request, up.status, up.complaint)
        if path == "/token":
            return self._token(request, authorization)
        if path.startswith("/storage/"):
            return self._blob(request, path.removeprefix("/storage/"), asked_range)
        if not self._allowed(authorization):
            request.setHeader("WWW-Authenticate", self._challenge(path))
            if up.endless:
                request.setResponseCode(401)
                request.write(b"{")
                return NOT_DONE_YET
            return _answer(request, 401, b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}')
        if path == "/v2/":
            return _answer(request, 200, b"{}")
        if found := re.fullmatch(r"/v2/(.+)/blobs/(.+)", path):
            if up.redirect:
                request.redirect(f"{up.redirect}/storage/{found[2]}?signature=s1gnature".encode())
                if up.endless:
                    request.write(b"<html>")
                else:
                    request.finish()
                return NOT_DONE_YET
            return self._blob(request, found[2], asked_range)
        if found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            if found[2] not in up.manifests:
                return _answer(request, 404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')
            media_type, data = up.manifests[found[2]]
            request.setHeader("Content-Type", media_type)
            request.setHeader("Docker-Content-Digest", str(Digest.of(data)))
            return _answer(request, 200, data)
        return _answer(request, 404, b"")

    def _allowed(self, authorization: str) -> bool:
        up = self._upstream
        if up.auth == "basic":
            return authorization == _basic(up.user, up.password)
        return up.auth == "none" or authorization.removeprefix("Bearer ") in up.tokens

    def _challenge(self, path: str) -> str:
        up = self._upstream
        if up.auth == "basic":
            return 'Basic realm="here"'
        repository = re.sub(r"^/v2/|/(manifests|blobs)/.*$", "", path) or "team/app"
        realm = up.realm or f"http://{up.host}/token"
        return f'Bearer realm="{realm}",service="here",scope="repository:{repository}:pull"'

    def _token(self, request: Request, authorization: str) -> int:
        up = self._upstream
        assert request.content is not None
        form = parse_qs(request.content.read().decode())
        right = authorization == _basic(up.user, up.password) or form.get("refresh_token") == [up.identity_token]
        if not right and not (up.anonymous_tokens and not authorization):
            return _answer(request, 401, b'{"details":"incorrect username or password"}')
        token = f"t0ken-{len(up.tokens)}"
        up.tokens.add(token)
        answer: dict[str, Any] = {"access_token" if form else "token": token}
        if up.token_lifetime is not None:
            answer["expires_in"] = up.token_lifetime
        return _answer(request, 200, json.dumps(answer).encode())

    def _blob(self, request: Request, name: str, asked_range: str) -> int:
        up = self._upstream
        data = up.blobs.get(Digest.parse(name))
        if data is None:
            return _answer(request, 404, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}')
        found = re.fullmatch(r"bytes=(\d+)-", asked_range)
        if found and up.ranges:
            start = int(found[1])
            request.setResponseCode(206)
            request.setHeader("Content-Range", f"bytes {start + up.skew}-{len(data) - 1}/{len(data)}")
            data = data[start:]
        if up.lengths:
            request.setHeader("Content-Length", str(len(data)))
        cut = up.cut_after.pop(0) if up.cut_after else None
        if cut is not None:
            request.write(data[:cut])
            request.channel.loseConnection()
        elif up.gate is not None:
            half = len(data) // 2
            request.write(data[:half])
            up.gate.addCallback(lambda _: _finish(request, data[half:]))
        else:
            _finish(request, data)
        return NOT_DONE_YET


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _finish(request: Request, data: bytes) -> None:
    if request.channel is not None:
        request.write(data)
        request.finish()


def _answer(request: Request, status: int, body: bytes) -> int:
    request.setResponseCode(status)
    request.setHeader("Content-Length", str(len(body)))
    request.write(body)
    request.finish()
    return NOT_DONE_YET
