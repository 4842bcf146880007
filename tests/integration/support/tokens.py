"""A registry with a token server: the real registry, which trusts the certificate of a token server in this process.

The flow is that of "Token Authentication Specification" (distribution/distribution, docs/content/spec/auth), which
Docker Hub, GHCR, GitLab and most others use.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import json
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.fakes.certificates import Authority
from tests.integration.support import rig
from tests.integration.support.private import basic, request
from tests.integration.support.upstream import Upstream

SERVICE, ISSUER = "a registry for tests", "a token server for tests"


class TokenServer:
    """Gives tokens to pull to whoever has the password or the refresh token; the registry trusts `authority`.

    With `anonymous`, all others get a token that opens nothing, as from Docker Hub; without, they are refused, as by
    GitLab's.  `given` are the tokens, which are secrets too.
    """

    username, password, refresh_token = "user", "a-password-for-tokens", "a-refresh-t0ken"

    def __init__(self, *, anonymous: bool = True) -> None:
        self.anonymous = anonymous
        self.authority = Authority()
        self.given: list[str] = []
        self._pair = self.authority.sign("token-server.example")
        tokens = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                self._answer(tokens._right(self.headers.get("Authorization", ""), {}), query.get("scope", []), "token")

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                right = tokens._right("", {name: values[0] for name, values in form.items()})
                self._answer(right, form.get("scope", []), "access_token")

            def _answer(self, right: bool, scopes: list[str], name: str) -> None:
                if not right and not (tokens.anonymous and "Authorization" not in self.headers and name == "token"):
                    answer: dict[str, Any] = {
                        "errors": [{"code": "UNAUTHORIZED", "message": "HTTP Basic: Access denied"}]
                    }
                else:
                    answer = {name: tokens.make(" ".join(scopes) if right else ""), "expires_in": 300}
                body = json.dumps(answer).encode()
                self.send_response(401 if "errors" in answer else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"

    def __enter__(self) -> TokenServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _right(self, authorization: str, form: dict[str, str]) -> bool:
        if form.get("grant_type") == "refresh_token":
            return form.get("refresh_token") == self.refresh_token
        if form.get("grant_type") == "password":
            return (form.get("username"), form.get("password")) == (self.username, self.password)
        return authorization == basic(self.username, self.password)

    def make(self, scopes: str) -> str:
        """A token for scopes such as `repository:team/app:pull,push`, separated by spaces."""
        access = []
        for scope in scopes.split():
            kind, name, actions = scope.split(":", 1)[0], *scope.split(":", 1)[1].rsplit(":", 1)
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        chain = [base64.b64encode(_der(self._pair.certificate)).decode()]
        claims = {
            **{"iss": ISSUER, "sub": self.username, "aud": SERVICE, "exp": now + 300, "nbf": now - 10, "iat": now},
            **{"jti": uuid.uuid4().hex, "access": access},
        }
        signed = f"{_encode({'typ': 'JWT', 'alg': 'ES256', 'x5c': chain})}.{_encode(claims)}"
        key = load_pem_private_key(self._pair.key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        token = f"{signed}.{_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
        self.given.append(token)
        return token


class TokenUpstream(Upstream):
    """The registry that wants tokens of `tokens`, for those who push images for a test."""

    def __init__(self, address: str, tokens: TokenServer) -> None:
        super().__init__(address)
        self.tokens = tokens

    def _request(self, method: str, path: str, body: bytes = b"", content_type: str = "") -> http.client.HTTPResponse:
        repository = path.removeprefix("/v2/").partition("/blobs/")[0].partition("/manifests/")[0]
        token = self.tokens.make(f"repository:{repository}:pull,push")
        headers = {"Authorization": f"Bearer {token}"} | ({"Content-Type": content_type} if content_type else {})
        return request(self.address, method, path, headers, body)[0]


@contextlib.contextmanager
def token_registry(tokens: TokenServer) -> Iterator[TokenUpstream]:
    """The real registry, in the chroot that it is installed in, for the time of a `with`."""
    command = rig.setting("K3DREG_TEST_REGISTRY_BINARY").split()
    root = Path(command[1]) if command[0] == "chroot" else Path("/")
    inside = f"/tmp/k3dreg-test-{uuid.uuid4().hex[:12]}"
    directory = root / inside.lstrip("/")
    directory.mkdir(parents=True)
    port = _free_port()
    (directory / "trusted.pem").write_bytes(tokens.authority.certificate)
    config = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": f"{inside}/data"}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "tests"},
        "auth": {
            "token": {
                **{"realm": tokens.realm, "service": SERVICE, "issuer": ISSUER},
                "rootcertbundle": f"{inside}/trusted.pem",
            }
        },
    }
    (directory / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "serve", f"{inside}/config.yml"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        upstream = TokenUpstream(f"127.0.0.1:{port}", tokens)
        end = time.monotonic() + 30
        while not _answers(upstream.address):
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < end, "the registry does not answer"
            time.sleep(0.05)
        yield upstream
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(directory)


def _answers(address: str) -> bool:
    try:
        return request(address, "GET", "/v2/")[0].status == 401
    except OSError:
        return False


def _free_port() -> int:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return int(server.server_address[1])


def _der(certificate: bytes) -> bytes:
    return base64.b64decode(b"".join(certificate.splitlines()[1:-1]))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _encode(value: dict[str, Any]) -> str:
    return _base64url(json.dumps(value).encode())
