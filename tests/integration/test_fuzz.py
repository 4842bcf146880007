"""Malformed requests of all kinds: no fault in the log, no file where none belongs, no growth, and it still answers."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.integration.support.daemon import running
from tests.integration.support.registry_client import RegistryClient, digest_of, manifest, with_digest
from tests.integration.support.rig import EngineAddress

NOBODY = EngineAddress("nobody", "unix:///nonexistent/docker.sock")
# Some 1,500 a second; set K3DREG_FUZZ for more.
REQUESTS = int(os.environ.get("K3DREG_FUZZ", "20000"))
BATCH = 200
CLIENTS = 32
MIB = 1 << 20

METHODS = [
    b"GET",
    b"HEAD",
    b"PUT",
    b"POST",
    b"PATCH",
    b"DELETE",
    b"OPTIONS",
    b"TRACE",
    b"get",
    b"",
    b"X" * 300,
    b"G\x00T",
]
GOOD = [
    b"app",
    b"library/nginx",
    b"manifests",
    b"blobs",
    b"uploads",
    b"tags",
    b"list",
    b"referrers",
    b"_catalog",
    b"v2",
    b"t",
]
BAD = [
    b"..", b".", b"", b"%2e%2e", b"%2F", b"..%2f..%2fetc%2fpasswd", b"%00", b"%", b"%zz", b"%c0%ae", b"\xff\xfe",
    b"a" * 300, b"A", b"\\..\\..", b"....//", b"%252e%252e", b"~root", b"|id", b"$(id)", b"`id`", b"'", b'"',
    b"<script>", b"\x1b[2J", b"sha256:", b"sha256:../../../../tmp/p", b"sha256:" + b"a" * 63, b"sha256:" + b"A" * 64,
    b"sha256:" + b"0" * 64, b"sha512:" + b"0" * 128, b"sha256:" + b"0" * 64 + b"/../x", b"md5:00", b":",
    b"sha256:" + b"\xd9\xa3" * 32,
]  # fmt: skip
QUERIES = [
    b"", b"?", b"?n=-1", b"?n=" + b"9" * 5000, b"?last=../..", b"?ns=docker.io", b"?ns=../../etc", b"?ns=a&ns=b",
    b"?ns=%00", b"?digest=sha256:../../../../etc/passwd", b"?digest=sha256:" + b"0" * 64, b"?mount=../x&from=../y",
    b"?tag=../../x", b"?" + b"a=b&" * 2000, b"?artifactType=%ff", b"?digest-algorithm=../x", b"?digest=/etc/cron.d/x",
]  # fmt: skip
HEADERS = [
    b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: " + b"9" * 6000,
    b"Content-Length: 5", b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Content-Length: x", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked, chunked", b"Expect: 100-continue", b"Range: bytes=0-",
    b"Range: bytes=5-1", b"Range: bytes=" + b"1-2," * 1000, b"Range: bytes=-" + b"9" * 4000, b"Range: x",
    b"Content-Range: 0-9", b"Content-Range: 9-0", b"Content-Range: ../..", b"Content-Range: " + b"9" * 3000 + b"-1",
    b"Authorization: Basic !!!", b"Authorization: Basic " + b"QQ==" * 500, b"Authorization: Bearer \xff",
    b"X: " + b"y" * 9000, b"Content-Type: application/x-www-form-urlencoded",
    b"Content-Type: multipart/form-data; boundary=x", b"Cookie: a=b; c",
    b"Content-Type: application/vnd.oci.image.manifest.v1+json", b"If-None-Match: *", b"If-Range: \x01",
    b"No colon here", b": no name", b" folded", b"Host: a\r\nHost: b", b"Connection: close", b"Upgrade: h2c",
    b"\xff: \xff", b"A\x00B: c",
]  # fmt: skip
BODIES = [
    b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"-5\r\nhello\r\n",
    b"5;" + b"x" * 2000 + b"\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffffff\r\nx", b"5\r\nhelloXX0\r\n\r\n",
    b"0\r\nTrailer: " + b"x" * 70_000 + b"\r\n\r\n", b"\x00" * 5000, b"{" * 4000,
    b'{"schemaVersion": 2, "manifests": [[]]}', b'{"layers": {}, "config": null}', b"[" * 2000 + b"]" * 2000,
    b'{"mediaType": "application/vnd.oci.image.manifest.v1+json", "config": {"digest": "sha256:../x"}, "layers": []}',
]  # fmt: skip


# Headers that k3dreg or Twisted looks at: the name, and what comes before and after the odd byte of the value.
VALUES = [
    (b"User-Agent", b"", b""), (b"User-Agent", b"containerd/", b".1"), (b"User-Agent", b"containerd/2.", b""),
    (b"User-Agent", b"UpstreamClient(", b""), (b"Accept", b"text/html", b""), (b"Host", b"x", b""),
    (b"Authorization", b"Basic ", b""), (b"Authorization", b"", b" QTpC"), (b"Range", b"bytes=", b"-"),
    (b"Range", b"bytes=0-", b",1-2"), (b"If-Range", b'"', b'"'), (b"If-None-Match", b'"', b'"'),
    (b"Content-Range", b"0-", b""), (b"Content-Type", b"a/b;", b""), (b"Content-Length", b"", b""),
    (b"Transfer-Encoding", b"", b""), (b"Expect", b"", b""), (b"Connection", b"", b""), (b"Cookie", b"a", b"=b"),
    (b"traceparent", b"00-", b"-01"), (b"Origin", b"http://", b""), (b"Referer", b"http://[", b""),
    (b"Accept-Language", b"", b""), (b"Sec-Fetch-Site", b"", b""), (b"Last-Event-ID", b"", b""), (b"X", b"", b""),
]  # fmt: skip
LONG = b'09aA-,.:;=/ "(\xff\x80'
PARAMETERS = {
    b"/v2/app/manifests/t": [b"ns", b"", b"other"],
    b"/v2/app/tags/list": [b"n", b"last"],
    b"/v2/_catalog": [b"n", b"last"],
    b"/v2/app/referrers/sha256:" + b"0" * 64: [b"artifactType"],
    b"/": [b"x"],
}

LAYER, CONFIG = b"a layer", b'{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}'
IMAGE = manifest(CONFIG, [LAYER])


def right(chance: random.Random, session: bytes) -> bytes:
    """A request that is as it should be: pushing, pulling, listing or deleting one and the same image."""
    digest = digest_of(LAYER).encode()
    method, target, headers, body = chance.choice(
        [
            (b"POST", b"/v2/app/blobs/uploads/", [b"Content-Length: 0"], b""),
            (b"POST", b"/v2/app/blobs/uploads/?digest=" + digest, [b"Content-Length: 7"], LAYER),
            (b"POST", b"/v2/other/blobs/uploads/?from=app&mount=" + digest, [b"Content-Length: 0"], b""),
            (b"PATCH", session, [b"Content-Length: 7", b"Content-Range: 0-6"], LAYER),
            (b"PATCH", session, [b"Transfer-Encoding: chunked"], b"3\r\na l\r\n4\r\nayer\r\n0\r\n\r\n"),
            (b"PUT", session + b"?digest=" + digest, [b"Content-Length: 7", b"Expect: 100-continue"], LAYER),
            (b"GET", session, [], b""),
            (b"DELETE", session, [], b""),
            (b"PUT", b"/v2/app/manifests/t", [b"Content-Length: %d" % len(IMAGE)], IMAGE),
            (b"PUT", b"/v2/app/manifests/" + digest_of(IMAGE).encode(), [b"Content-Length: %d" % len(IMAGE)], IMAGE),
            (b"DELETE", b"/v2/app/manifests/t", [], b""),
            (b"DELETE", b"/v2/app/blobs/" + digest, [], b""),
            (b"GET", b"/v2/app/blobs/" + digest, [b"Range: bytes=2-4"], b""),
            (b"GET", b"/v2/app/manifests/t", [], b""),
            (b"GET", b"/v2/app/tags/list?n=1&last=a", [], b""),
            (b"GET", b"/v2/app/referrers/" + digest + b"?artifactType=a", [], b""),
            (b"GET", b"/v2/_catalog?n=1", [], b""),
        ]
    )
    return b"\r\n".join(
        [b" ".join((method, target, b"HTTP/1.1")), b"Host: x", b"Connection: close", *headers, b"", body]
    )


def spoiled(chance: random.Random, data: bytes) -> bytes:
    """A few bytes changed, added, doubled or left out."""
    for _ in range(chance.randrange(1, 4)):
        at, length = chance.randrange(len(data) + 1), chance.choice((0, 0, 1, 2, 40))
        other = chance.choice((b"", chance.randbytes(2), data[at : at + length] * 2, chance.choice(BAD), b"\r\n", b"/"))
        data = data[:at] + other + data[at + length :]
    return data


def odd_bytes(chance: random.Random) -> Iterator[bytes]:
    """Requests that have an odd byte in a header's value, in a header's name, or in the value of a parameter.

    Each byte in each place, again and again; of some of them also more than `int` and regular expressions may like.
    """
    order = [bytes([number]) for number in range(256)]
    chance.shuffle(order)
    parameters = [(path, name) for path, names in PARAMETERS.items() for name in names]
    while True:
        for byte in order:
            for many in (byte, byte * 5000) if byte in LONG else (byte,):
                for name, before, after in VALUES:
                    yield odd_request(path_for(name), name + b": " + before + many + after)
            yield odd_request(b"/v2/app/manifests/t", b"X" + byte + b": y")
            for path, name in parameters:
                yield odd_request(path + b"?" + name + b"=" + byte)
                yield odd_request(path + b"?" + name + b"=a%%%02xb" % byte[0])


def path_for(name: bytes) -> bytes:
    return b"/" if name in (b"Host", b"Accept") else b"/v2/app/blobs/" + digest_of(LAYER).encode()


def odd_request(target: bytes, header: bytes = b"X: y") -> bytes:
    host = b"" if header.startswith(b"Host:") else b"Host: x\r\n"
    return b"GET " + target + b" HTTP/1.1\r\n" + host + header + b"\r\nConnection: close\r\n\r\n"


def request(chance: random.Random, session: bytes, odd: Iterator[bytes]) -> tuple[bytes, bool]:
    """Bytes that are a request, or nearly one, or not at all; and whether an answer is sure to come."""
    kind = chance.random()
    if kind < 0.15:
        return right(chance, session), True
    if kind > 0.7:
        return next(odd), False
    return spoiled(chance, right(chance, session)) if kind < 0.35 else malformed(chance, session), False


def malformed(chance: random.Random, session: bytes) -> bytes:
    """Bytes that are nearly, or not at all, a request."""
    if chance.random() < 0.05:
        return chance.randbytes(chance.randrange(1, 3000)) + chance.choice((b"", b"\r\n\r\n"))
    parts = [chance.choice(GOOD if chance.random() < 0.75 else BAD) for _ in range(chance.randrange(1, 7))]
    path = b"/" + b"/".join(parts if chance.random() < 0.3 else [b"v2", *parts])
    if chance.random() < 0.25:
        path = session
    elif chance.random() < 0.3:
        kind = chance.choice((b"manifests/", b"blobs/", b"blobs/uploads/", b"referrers/", b"tags/"))
        path = b"/v2/app/" + kind + chance.choice(BAD + GOOD)
    target = path + chance.choice(QUERIES if chance.random() < 0.5 else [b""])
    version = (
        b"HTTP/1.1" if chance.random() < 0.9 else chance.choice((b"HTTP/1.0", b"HTTP/9", b"", b"HTTP/1.1 x", b"SSH-2"))
    )
    lines = [
        b" ".join((chance.choice(METHODS[:6] if chance.random() < 0.85 else METHODS), target, version)),
        b"Host: x",
    ]
    lines += [chance.choice(HEADERS) for _ in range(chance.randrange(0, 4))]
    whole = b"\r\n".join([*lines, b"", chance.choice(BODIES)])
    if chance.random() < 0.1:
        at = chance.randrange(len(whole))
        whole = whole[:at] + chance.randbytes(2) + whole[at + chance.randrange(3) :]
    return whole


def send(host: str, data: bytes, is_whole: bool, read: bool) -> bytes:
    """Send it, and read what is answered, for a while, and once more after saying that nothing else comes."""
    name, _, port = host.partition(":")
    answered = b""
    with contextlib.suppress(OSError), socket.create_connection((name, int(port)), timeout=10) as connection:
        connection.sendall(data)
        for max_wait in (30.0 if is_whole else 0.05, 1.0) if read else ():
            connection.settimeout(max_wait)
            with contextlib.suppress(TimeoutError):
                while len(answered) < MIB and (some := connection.recv(65536)):
                    answered += some
                break
            connection.shutdown(socket.SHUT_WR)
    return answered


def files_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


# What may be in the state directory: nothing has a name that a client chose.
BELONGS = re.compile(
    r"(lock|session|reserve|identity|pushed\.db(-wal|-shm)?|staging/\S+|images/[0-9a-f]{64}\.json"
    r"|blobs/(sha256/[0-9a-f]{2}/[0-9a-f]{64}|sha512/[0-9a-f]{2}/[0-9a-f]{128}))"
)


def run(directory: Path, check: Callable[[bytes, bytes], None]) -> None:
    seed = int(os.environ.get("K3DREG_SEED", str(random.randrange(1 << 30))))
    print(f"K3DREG_SEED={seed}")
    chance = random.Random(seed)
    odd = odd_bytes(chance)
    with running(NOBODY, directory) as daemon:
        client = RegistryClient(daemon.host)
        client.push_image("app", "t", b"a layer")
        before = 0
        with ThreadPoolExecutor(CLIENTS) as clients:
            for number in range(0, REQUESTS, BATCH):
                session = client.begin("app").location.encode()
                batch = [request(chance, session, odd) for _ in range(BATCH)]
                sent = [
                    clients.submit(send, daemon.host, data, is_whole, is_whole or chance.random() < 0.9)
                    for data, is_whole in batch
                ]
                for (data, is_whole), answer in zip(batch, sent, strict=True):
                    check(data, answer.result())
                    assert answer.result() or not is_whole, data
                if number <= REQUESTS // 4:
                    before = daemon.memory()
        after = daemon.memory()
        print(
            f"{REQUESTS} requests; resident {before / MIB:.0f} MiB after a quarter of them, {after / MIB:.0f} after all"
        )
        assert after < before + 16 * MIB
        assert RegistryClient(daemon.host).get("/v2/app/manifests/t").status in (200, 404)
        client.push_image("afterwards", "t", b"another layer")


def test_no_request_makes_a_fault_or_a_file_elsewhere(tmp_path: Path) -> None:
    statuses: dict[bytes, int] = {}

    def check(data: bytes, answered: bytes) -> None:
        if answered:
            assert answered.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")), (data, answered[:200])
            status = answered[9:12]
            statuses[status] = statuses.get(status, 0) + 1
            assert b"<html" not in answered.lower() or status == b"200", (data[:2000], answered[:2000])
            # 503 is for what only an engine could have.
            assert not status.startswith(b"5") or status == b"503", (data[:2000], answered[:2000])

    run(tmp_path, check)
    print(statuses)
    assert {b"200", b"201", b"202", b"204", b"206", b"400", b"404", b"405"} <= set(statuses)
    assert {name for name in files_below(tmp_path) if not name.startswith("state/")} == {"log"}
    strangers = [name for name in files_below(tmp_path / "state") if not BELONGS.fullmatch(name)]
    assert strangers == []


def test_a_digest_or_a_session_cannot_name_a_file(tmp_path: Path) -> None:
    """The Go program of this purpose joined the digest of an upload to a directory, and wrote there."""
    target = tmp_path / "outside"
    with running(NOBODY, tmp_path) as daemon:
        client = RegistryClient(daemon.host)
        ups = "../" * 12
        for algorithm in ("sha256", "sha512", ups, f"{ups}{target}", "sha256/../.."):
            for hexadecimal in (f"{ups}{target}", f"..%2f..%2f{target}", str(target), "0" * 63 + "/", "0" * 64 + "\n"):
                digest = f"{algorithm}:{hexadecimal}".replace("\n", "%0a")
                for path in (
                    with_digest(client.begin("app").location, digest),
                    f"/v2/app/blobs/uploads/?digest={digest}",
                ):
                    answer = client.ask("PUT" if "?digest" not in path[:40] else "POST", path, b"owned")
                    assert answer.status in (400, 404, 405), answer
                assert client.push_manifest("app", digest, b'{"mediaType": "x"}').status in (400, 404)
                for method in ("GET", "DELETE"):
                    assert client.ask(method, f"/v2/app/blobs/{digest}").status in (400, 404)
        for session in (f"{ups}{target}", "..%2f..%2fstaging", "%2e%2e", str(target)):
            for method in ("PATCH", "PUT", "DELETE", "GET"):
                path = with_digest(f"/v2/app/blobs/uploads/{session}", digest_of(b"owned"))
                assert client.ask(method, path, b"owned" if method in ("PATCH", "PUT") else None).status in (
                    400,
                    404,
                    405,
                )
    assert not target.exists()
    assert [name for name in files_below(tmp_path / "state") if not BELONGS.fullmatch(name)] == []
