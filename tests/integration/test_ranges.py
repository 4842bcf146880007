"""Parts of blobs on the running daemon: one range, several in one request, and ranges that its client cuts off."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attrs import frozen

from tests.integration.conftest import EXPORTS_ONLY, READERS_ONLY
from tests.integration.support import rig
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker, build_context
from tests.integration.support.one_file import archive
from tests.integration.support.registry_client import Answer, RegistryClient, digest_of
from tests.integration.support.rig import EngineAddress
from tests.integration.test_listening import serving

NOBODY = EngineAddress("nobody", "unix:///nonexistent/docker.sock")
# More than goes through the reactor in one piece: the kernel alone sends a large part (k3dreg.streaming.file_producer).
SIZE = 3_000_000
LARGE = 600_000


def parts_of(answer: Answer) -> list[tuple[str, bytes]]:
    """Return `Content-Range` and bytes of each part of a multipart answer, which has to be exactly as RFC 2046 says."""
    found = re.fullmatch(r"multipart/byteranges; boundary=([0-9a-f]+)", answer.headers["content-type"])
    assert found, answer.headers
    delimiter = f"\r\n--{found[1]}".encode()
    assert "content-range" not in answer.headers
    assert int(answer.headers["content-length"]) == len(answer.body)
    before, *pieces, end = answer.body.split(delimiter)
    assert (before, end) == (b"", b"--\r\n")
    parts = []
    for piece in pieces:
        head, _, data = piece.partition(b"\r\n\r\n")
        expected = rb"\r\nContent-Type: application/octet-stream\r\nContent-Range: (.+)"
        told = re.fullmatch(expected, head)
        assert told, head
        parts.append((told[1].decode(), data))
    return parts


def check_ranges(client: RegistryClient, path: str, data: bytes) -> None:
    """Ask for ranges of all kinds of the blob at `path`, which is `data`."""
    size = len(data)
    ranges = [(100, 110), (0, 10), (10, LARGE), (size - LARGE, size - 1), (size - 1, size)]
    listed = ", ".join(f"{start}-{stop - 1}" for start, stop in ranges)
    answer = client.get(path, Range=f"bytes={listed},,{size}-")
    assert answer.status == 206, answer
    assert parts_of(answer) == [(f"bytes {a}-{b - 1}/{size}", data[a:b]) for a, b in ranges]
    for one in ("bytes=20-29,", f"bytes={size}-, 20-29"):
        answer = client.get(path, Range=one)
        assert (answer.status, answer.body) == (206, data[20:30])
        assert answer.headers["content-range"] == f"bytes 20-29/{size}"
    for whole in (f"bytes=0-{size - 1},0-0", "bytes=" + ",".join(["0-0"] * 1025), "bytes=0-9;20-29"):
        answer = client.get(path, Range=whole)
        assert (answer.status, answer.body) == (200, data)
    assert client.get(path, Range=f"bytes={size}-,-0").status == 416
    digest = f'"{digest_of(data)}"'
    assert client.get(path, Range="bytes=0-9,20-29", If_Range=digest).status == 206
    assert client.get(path, Range="bytes=0-9,20-29", If_Range='"other"').status == 200
    head = client.ask("HEAD", path, Range="bytes=0-9,20-29")
    assert (head.status, head.headers["content-length"]) == (200, str(size))
    assert "content-range" not in head.headers


def test_ranges_of_what_was_pushed(tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    with running(NOBODY, tmp_path) as daemon:
        client = RegistryClient(daemon.host, keep_alive=True)
        check_ranges(client, f"/v2/app/blobs/{client.push_blob('app', data)}", data)
        assert " 499" not in daemon.log()


def test_as_many_ranges_as_podman_asks_for_at_once(tmp_path: Path) -> None:
    """containers/storage asks for up to 1,024 chunks (pkg/chunked); with offsets of 10 digits, in 23 KB of header."""
    data = os.urandom(100_000)
    with running(NOBODY, tmp_path) as daemon:
        client = RegistryClient(daemon.host)
        digest = client.push_blob("app", data)
        listed = ",".join(f"{n * 90:010}-{n * 90 + 9:010}" for n in range(1024))
        parts = parts_of(client.get(f"/v2/app/blobs/{digest}", Range=f"bytes={listed}"))
        assert [part for _, part in parts] == [data[n * 90 : n * 90 + 10] for n in range(1024)]


def test_ranges_over_tls(tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    with serving(NOBODY, tmp_path) as https:
        digest = RegistryClient(https.plain.host).push_blob("app", data)
        request = urllib.request.Request(
            f"https://{https.host}/v2/app/blobs/{digest}", headers={"Range": f"bytes=0-9,1000-{LARGE},-5"}
        )
        context = ssl.create_default_context(cadata=https.ca.decode())
        with urllib.request.urlopen(request, context=context, timeout=30) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            answer = Answer(response.status, headers, response.read())
    assert [part for _, part in parts_of(answer)] == [data[:10], data[1000 : LARGE + 1], data[-5:]]


@frozen
class Held:
    """An image that only the engine has; `layer` is the digest of its layer."""

    name: str
    layer: str

    @property
    def path(self) -> str:
        return f"/v2/{self.name}/blobs/{self.layer}?ns=docker.io"


@pytest.fixture(params=[None, READERS_ONLY, EXPORTS_ONLY], ids=["in-place", "api", "export"])
def daemon(request: pytest.FixtureRequest, engine: EngineAddress, tmp_path: Path) -> Iterator[Daemon]:
    """One that has not seen any image yet."""
    in_place = () if engine.name == rig.OWN else ("--docker-root", str(engine.directory / "data"))
    with running(engine, tmp_path, *(in_place if request.param is None else request.param)) as daemon:
        yield daemon


def hold(engine: EngineAddress, daemon: Daemon, size: int) -> Iterator[Held]:
    docker, name = Docker(engine.socket), f"ranges/{uuid.uuid4().hex[:12]}"
    query = {"fromSrc": "-", "repo": name, "tag": "t"}
    data = archive(os.urandom(size))
    docker.progress("POST", "/images/create", body=data, query=query, content_type="application/x-tar")
    try:
        manifest = RegistryClient(daemon.host).get(f"/v2/{name}/manifests/t?ns=docker.io").json
        if "manifests" in manifest:
            child = manifest["manifests"][0]["digest"]
            manifest = RegistryClient(daemon.host).get(f"/v2/{name}/manifests/{child}?ns=docker.io").json
        yield Held(name, manifest["layers"][0]["digest"])
    finally:
        docker.remove(f"{name}:t")


@pytest.fixture
def held(engine: EngineAddress, daemon: Daemon) -> Iterator[Held]:
    yield from hold(engine, daemon, SIZE)


@pytest.mark.engines("docker29", "docker29-classic", "docker26", "podman")
def test_ranges_of_what_docker_holds(held: Held, daemon: Daemon) -> None:
    client = RegistryClient(daemon.host)
    # The first request for it comes before anything of it was read.
    first = client.get(held.path, Range="bytes=0-9,1000000-1000009,-10")
    parts = [part for _, part in parts_of(first)]
    data = client.get(held.path).body
    assert digest_of(data) == held.layer
    assert parts == [data[:10], data[1_000_000:1_000_010], data[-10:]]
    check_ranges(client, held.path, data)
    print(json.dumps(re.findall(r" 206 (\w+)", daemon.log())))


# What `concurrent_layer_fetch_buffer` and `max_concurrent_downloads` of a containerd 2.1 node may be.
CHUNK = 512 * 1024
PARALLEL = 3


def fetch_in_chunks(daemon: Daemon, path: str, size: int) -> bytes:
    """As such a node: each connection asks for all from its chunk on, and is closed after the chunk."""

    def fetch(start: int) -> bytes:
        connection = http.client.HTTPConnection(daemon.host, timeout=60)
        try:
            connection.request("GET", path, headers={"Range": f"bytes={start}-"})
            response = connection.getresponse()
            assert response.status == 206
            assert response.headers["Content-Range"] == f"bytes {start}-{size - 1}/{size}"
            return response.read(min(CHUNK, size - start))
        finally:
            connection.close()

    with ThreadPoolExecutor(PARALLEL) as clients:
        return b"".join(clients.map(fetch, range(0, size, CHUNK)))


@pytest.mark.engines("docker29")
@pytest.mark.parametrize("daemon", [READERS_ONLY], ids=["api"], indirect=True)
def test_many_ranges_of_a_large_layer_take_about_as_long_as_all_of_it(engine: EngineAddress, daemon: Daemon) -> None:
    for held in hold(engine, daemon, 60_000_000):
        began = time.monotonic()
        data = RegistryClient(daemon.host).get(held.path).body
        whole = time.monotonic() - began
        assert digest_of(data) == held.layer
        began = time.monotonic()
        assert fetch_in_chunks(daemon, held.path, len(data)) == data
        chunks = time.monotonic() - began
        print(f"{len(data)} bytes at once {whole:.2f} s, in chunks {chunks:.2f} s")
        # 115 requests.  With the layer read from its beginning for each of them it was 11 s.
        assert chunks < 2 * whole + 3


def test_a_range_that_its_client_cuts_off_is_no_warning(tmp_path: Path) -> None:
    data = os.urandom(40_000_000)  # more than sockets hold
    with running(NOBODY, tmp_path) as daemon:
        digest = RegistryClient(daemon.host).push_blob("app", data)
        assert fetch_in_chunks(daemon, f"/v2/app/blobs/{digest}", len(data)) == data
        daemon.wait_for(r"#info\] \S+ GET app blob \S+ 206 pushed, \d+ bytes, \S+: the client closed the connection")
        assert " 499" not in daemon.log()
        assert not re.search(r"web\.log#(warn|error)", daemon.log())


def test_podman_fetches_only_what_has_changed(tmp_path: Path) -> None:
    """A partial pull of zstd:chunked layers: several ranges in one request, each a file that podman has not got."""
    tools = shlex.split(rig.setting("K3DREG_TEST_DOCKER"))[:-1]
    inside = f"/k3dreg-test/ranges-{uuid.uuid4().hex[:12]}"
    # The tools live in a chroot, or on this machine itself.
    directory = Path(tools[1] + inside) if tools else tmp_path / "podman"
    inside = inside if tools else str(directory)
    directory.mkdir()
    (directory / "containers.conf").write_text('[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n')
    (directory / "registries.conf").write_text('[[registry]]\nlocation = "127.0.0.1"\ninsecure = true\n')
    for who in ("pusher", "puller"):
        (directory / f"{who}.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{inside}/{who}"\nrunroot = "{inside}/{who}-run"\n'
            '[storage.options]\npull_options = {enable_partial_images = "true"}\n'
        )

    def podman(who: str, *words: str, stdin: bytes = b"") -> str:
        variables = {"CONF": "containers", "STORAGE_CONF": who, "REGISTRIES_CONF": "registries"}
        settings = [f"CONTAINERS_{name}={inside}/{file}.conf" for name, file in variables.items()]
        command = [*tools, "env", *settings, "podman", *words]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    files = {f"file{number:03}": os.urandom(50_000) for number in range(100)}
    try:
        with running(NOBODY, tmp_path) as daemon:
            for tag in ("1", "2"):
                files.update({f"file{number:03}": os.urandom(50_000) for number in range(0, 100, 10)})
                podman("pusher", "import", "-", f"localhost/z:{tag}", stdin=build_context(files))
                podman(
                    "pusher",
                    *["push", "-q", "--compression-format", "zstd:chunked", f"localhost/z:{tag}"],
                    f"{daemon.host}/z:{tag}",
                )
            podman("puller", "pull", "-q", f"{daemon.host}/z:1")
            since = len(daemon.log())
            podman("puller", "pull", "-q", f"{daemon.host}/z:2")
            sent = re.findall(r" GET z blob \S+ (\d+) pushed, (\d+) bytes", daemon.log()[since:])
            print(sent)
            # The config, the layer's table of contents, and ten files of the hundred.
            assert [status for status, _ in sent].count("206") == 2
            assert 10 * 50_000 < sum(int(size) for _, size in sent) < 20 * 50_000
            mounted = podman("puller", "image", "mount", f"{daemon.host}/z:2")
            found = Path((tools[1] if tools else "") + mounted)
            assert {name: (found / name).read_bytes() for name in files} == files
    finally:
        podman("puller", "image", "umount", "--all")
        shutil.rmtree(directory)
