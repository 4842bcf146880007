"""Requests that are odd and allowed, and requests that are wrong: what the running daemon answers."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.integration.support.daemon import Daemon, running
from tests.integration.support.registry_client import RegistryClient, digest_of
from tests.integration.support.rig import EngineAddress

NOBODY = EngineAddress("nobody", "unix:///nonexistent/docker.sock")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(NOBODY, tmp_path_factory.mktemp("requests")) as daemon:
        yield daemon


def ask(daemon: Daemon, head: bytes, body: bytes = b"") -> tuple[int, bytes, bytes]:
    """Send these bytes; return status, head and body of the one answer."""
    host, _, port = daemon.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
        answered = b""
        while some := connection.recv(65536):
            answered += some
    head, _, body = answered.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head, body


def test_a_target_may_be_a_whole_url(daemon: Daemon) -> None:
    """RFC 9112, 3.2.2: a server must accept the absolute-form, which proxies send."""
    url = f"http://{daemon.host}".encode()
    digest = digest_of(b"hello").encode()
    target = url + b"/v2/absolute/blobs/uploads/?digest=" + digest
    host = b"Host: " + daemon.host.encode()
    assert ask(daemon, b"POST " + target + b" HTTP/1.1\r\n" + host + b"\r\nContent-Length: 5", b"hello")[0] == 201
    path = b"/v2/absolute/blobs/" + digest
    for whole in (url + path, b"HTTP://any.example" + path, b"https://any.example:443" + path):
        assert ask(daemon, b"GET " + whole + b" HTTP/1.1\r\n" + host)[::2] == (200, b"hello")
    assert ask(daemon, b"HEAD " + url + path + b" HTTP/1.0")[0] == 200
    assert ask(daemon, b"GET " + url + b" HTTP/1.1\r\n" + host)[2].startswith(b"k3dreg ")
    assert ask(daemon, b"GET " + url + b"?x=/v2/ HTTP/1.1\r\n" + host)[2].startswith(b"k3dreg ")


def test_the_host_of_the_target_counts_and_not_that_of_the_header(daemon: Daemon) -> None:
    """RFC 9112, 3.2.2.  What a browser may ask depends on the host that it asks for."""
    own, other = daemon.host.encode(), b"attacker.example"
    for target, header, status in ((own, other, 200), (other, own, 403)):
        head = b"GET http://" + target + b"/v2/_catalog HTTP/1.1\r\nHost: " + header + b"\r\nAccept-Language: en"
        assert ask(daemon, head)[0] == status


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v2/ HTTP/1.1",
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: a",
        b"GET /v2/ HTTP/1.0\r\nHost: a\r\nHost: b",
        b"GET http://a/v2/ HTTP/1.1",
        b"GET / HTTP/1.1",
        b"GET /v2/ HTTP/1.1\r\nHost: \xff",
        b"GET / HTTP/1.1\r\nAccept: text/html\r\nHost: \xff",
        b"GET /v2/ HTTP/1.1\r\nHost: a/b",
        b"GET /v2/ HTTP/1.1\r\nHost: me@a",
        b"GET /v2/ HTTP/1.1\r\nHost: a:b",
        b"GET http:///v2/ HTTP/1.1\r\nHost: a",
        b"GET http://me@a/v2/ HTTP/1.1\r\nHost: a",
        b"GET v2/ HTTP/1.1\r\nHost: a",
        b"GET ftp://a/v2/ HTTP/1.1\r\nHost: a",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a",
    ],
)
def test_a_request_for_no_host_or_for_two_is_refused(daemon: Daemon, head: bytes) -> None:
    """RFC 9112, 3.2: 400."""
    status, _, body = ask(daemon, head)
    assert status == 400
    assert json.loads(body)["errors"][0]["code"] == "UNSUPPORTED"


@pytest.mark.parametrize(
    "head", [b"GET /v2/ HTTP/1.0", b"GET /v2/ HTTP/1.1\r\nHost:", b"GET /v2/ HTTP/1.1\r\nHost: [::1]:5000"]
)
def test_an_old_client_and_an_empty_host_are_served(daemon: Daemon, head: bytes) -> None:
    assert ask(daemon, head)[0] == 200


@pytest.mark.parametrize(
    "header",
    [
        b"User-Agent: \xff",
        b"User-Agent: containerd/" + b"9" * 5000 + b".1",
        b"User-Agent: containerd/1." + b"9" * 5000,
        b"User-Agent: containerd/\xd9\xa3.\xd9\xa3",
        b"User-Agent: UpstreamClient(\xff",
        b"Accept: \xff",
        b"Accept-Language: \xff",
        b"Authorization: Basic \xff",
        b"Authorization: Basic /////w==",
        b"Cookie: \xff=\xff; =; \xff",
        b"If-None-Match: \xff",
        b"Range: bytes=\xb2-\xb3",
        b"Range: bytes=" + b"9" * 5000 + b"-" + b"9" * 5000,
        b"Content-Range: " + b"9" * 5000 + b"-" + b"9" * 5000,
        b"Content-Type: \xff",
        b"Origin: http://[",
        b"Referer: http://[\xff",
        b"Last-Event-ID: \xff",
        b"traceparent: \xff",
        b"Expect: \xff",
    ],
    ids=lambda header: ascii(header[:40]),
)
def test_no_header_makes_a_fault(daemon: Daemon, header: bytes) -> None:
    RegistryClient(daemon.host).push_image("odd", "t", b"a layer")
    since = len(daemon.log())
    for line in (
        *(b"GET /v2/", b"GET /", b"HEAD /v2/odd/manifests/t", b"GET /v2/odd/manifests/t", b"GET /v2/odd/tags/list"),
        *(
            b"GET /v2/_catalog",
            b"GET /v2/odd/blobs/" + digest_of(b"a layer").encode(),
            b"GET /metrics",
            b"GET /healthz",
        ),
        *(b"POST /v2/odd/blobs/uploads/", b"PUT /v2/odd/manifests/t"),
    ):
        status, head, body = ask(daemon, line + b" HTTP/1.1\r\nHost: localhost\r\n" + header)
        assert status < 500 or status == 503, (line, head)
        assert b"<html" not in body.lower() or status == 200
    assert "Traceback" not in daemon.log()[since:]


QUERIES = """
    ns=%ff ns=%00 n=%d9%a3 last=%ff digest=%ff mount=%ff&from=%ff tag=%ff artifactType=%ff artifactType=%ed%a0%80
    %ff=%ff digest-algorithm=%ff = &&& ;
"""


@pytest.mark.parametrize(
    "query",
    [*QUERIES.split(), "ns=" + "9" * 5000, "n=" + "9" * 5000],
    ids=lambda query: str(query)[:40],
)
def test_no_query_makes_a_fault(daemon: Daemon, query: str) -> None:
    RegistryClient(daemon.host).push_image("odd", "t", b"a layer")
    since = len(daemon.log())
    for line in (
        *("GET /v2/", "GET /", "GET /v2/odd/manifests/t", "GET /v2/odd/tags/list", "GET /v2/_catalog"),
        *(f"GET /v2/odd/referrers/{digest_of(b'a layer')}", "POST /v2/odd/blobs/uploads/", "PUT /v2/odd/manifests/t"),
    ):
        status, head, _ = ask(daemon, f"{line}?{query} HTTP/1.1\r\nHost: localhost".encode())
        assert status < 500 or status == 503, (line, head)
    assert "Traceback" not in daemon.log()[since:]


def variants(image: bytes) -> Iterator[tuple[str, bytes]]:
    """Manifests that are not as the specification says, and that Docker and nodes would fail on."""
    document = json.loads(image)
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1"):
        spoiled = {**document, "annotations": {"a": "\xe4"}}
        yield encoding, json.dumps(spoiled, ensure_ascii=False).encode(encoding)
    for name, value in {
        "nan": float("nan"),
        "infinity": {"deep": [float("-inf")]},
    }.items():
        yield name, json.dumps({**document, "x": value}).encode()
    for name, odd in {
        "list": ["a"],
        "empty list": [],
        "text": "a",
        "false": False,
        "a list in it": {"a": ["b"]},
        "a number in it": {"a": 1},
        "half a pair": {"a": "\ud800"},
        "half a pair as its name": {"\udfff": "a"},
    }.items():
        yield f"annotations: {name}", json.dumps({**document, "annotations": odd}).encode()
        layer = {**document["layers"][0], "annotations": odd}
        yield f"a layer's annotations: {name}", json.dumps({**document, "layers": [layer]}).encode()
    for key, value in {"artifactType": "\ud800", "mediaType": ["a"]}.items():
        yield f"{key}: {value!a}", json.dumps({**document, key: value}).encode()
    yield "artifactType: a list", json.dumps({**document, "artifactType": ["a"]}).encode()


def test_manifests_that_are_not_as_specified_are_refused(daemon: Daemon) -> None:
    client = RegistryClient(daemon.host)
    image = client.push_image("manifests", "t", b"a layer")
    headers = {"Content_Type": json.loads(image)["mediaType"]}
    for name, data in variants(image):
        answer = client.ask("PUT", "/v2/manifests/manifests/u", data, **headers)
        assert (answer.status, answer.code) == (400, "MANIFEST_INVALID"), (name, answer)
    for more in {"annotations": None}, {"annotations": {"a": None}}, {"annotations": {"a": "\xe4"}}:
        data = json.dumps({**json.loads(image), **more}, ensure_ascii=False).encode()
        assert client.ask("PUT", "/v2/manifests/manifests/u", data, **headers).status == 201
