"""HTTPS and IPv6: nodes pull and clients push, with a certificate that they verify."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import ssl
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.certificates import Authority
from tests.integration.conftest import Push, PushedImage
from tests.integration.support import images, rig
from tests.integration.support.clients import around
from tests.integration.support.clients import run as run_tool
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.images import VERDICT
from tests.integration.support.node import Node, PullFailed
from tests.integration.support.one_file import archive, content_of, from_registry
from tests.integration.support.registry_client import RegistryClient
from tests.integration.test_push_clients import NOBODY


@pytest.fixture(scope="module")
def tools() -> list[str]:
    """The words before a command that is to run where Debian's clients are installed."""
    return shlex.split(rig.setting("K3DREG_TEST_DOCKER"))[:-1]


pytestmark = pytest.mark.engines("docker29", "docker29-classic")


class Https:
    """A daemon that speaks HTTP at `plain.host` and HTTPS at `host`; `ca` is the authority's certificate."""

    def __init__(self, plain: Daemon, ca: bytes) -> None:
        self.plain = plain
        self.ca = ca
        self.host = plain.wait_for(r"listening on (\S+) \(TLS\)")[1]


@contextlib.contextmanager
def serving(engine: rig.EngineAddress, directory: Path, *options: str, is_rsa: bool = False) -> Iterator[Https]:
    """A daemon for the time of a `with`; `is_rsa` is about the key of its certificate."""
    authority = Authority()
    pair = authority.sign("localhost", "127.0.0.1", is_rsa=is_rsa)
    for name, text in (("cert", pair.certificate), ("key", pair.key)):
        (directory / f"{name}.pem").write_bytes(text)
    endpoint = f"ssl:0:interface=127.0.0.1:privateKey={directory}/key.pem:certKey={directory}/cert.pem"
    with running(engine, directory, "--listen", endpoint, *options) as daemon:
        yield Https(daemon, authority.certificate)


@pytest.fixture(scope="module")
def https(engine: rig.EngineAddress, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Https]:
    with serving(engine, tmp_path_factory.mktemp("https")) as https:
        yield https


@pytest.fixture(scope="module")
def pushes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Https]:
    """Without an engine: an image that the engine has is there before it was pushed."""
    with serving(NOBODY, tmp_path_factory.mktemp("pushes")) as https:
        yield https


def trust(node: Node, ca: bytes) -> str:
    """Lines for a node's mirror whose authority it is."""
    (node.address.directory / "ca.pem").write_bytes(ca)
    return f'  ca = "/{node.address.directory.relative_to(node.address.chroot)}/ca.pem"\n'


def test_a_node_pulls_over_https(engine: rig.EngineAddress, https: Https, node: Node, small_image: PushedImage) -> None:
    small_image.pull_into(engine)
    node.use_mirror(https.host, scheme="https", more=trust(node, Authority().certificate))
    with pytest.raises(PullFailed, match="certificate"):
        node.pull(small_image.name)
    node.use_mirror(https.host, scheme="https", more=trust(node, https.ca))
    node.pull(small_image.name)
    assert node.run(small_image.name).split("\n")[:2] == [small_image.message, VERDICT]
    https.plain.check_log()


@pytest.fixture(scope="module")
def image(push: Push, busybox: bytes) -> PushedImage:
    """20 MB in three layers."""
    message, sums = "over HTTPS", dict[str, str]()
    maker = images.LayerMaker(sums)
    maker.file("noise", images.noise(20_000_000, "https"))
    layers = [images.base_layer(busybox, sums), maker.layer(), images.last_layer(message, sums)]
    return push("k3dreg-test/https", layers, message)


@pytest.mark.engines("docker29")
def test_large_layers_come_over_https_from_files_and_from_an_export(
    engine: rig.EngineAddress, options: tuple[str, ...], one_node: Node, image: PushedImage, tmp_path: Path
) -> None:
    image.pull_into(engine)
    with serving(engine, tmp_path, *options) as https:
        one_node.clean()
        one_node.use_mirror(https.host, scheme="https", more=trust(one_node, https.ca))
        one_node.pull(image.name)
        assert one_node.run(image.name).split("\n")[:2] == [image.message, VERDICT]


def check_push(engine: rig.EngineAddress, host: str, registry: RegistryClient) -> None:
    """`docker push` to the host, which is the registry, and back."""
    docker, content, repository = Docker(engine.socket), os.urandom(3_000_000), f"pushed/{uuid.uuid4().hex[:12]}"
    name = f"{host}/{repository}"
    query = {"fromSrc": "-", "repo": name, "tag": "t"}
    docker.progress("POST", "/images/create", body=archive(content), query=query, content_type="application/x-tar")
    try:
        docker.push(name, "t")
        assert content_of(from_registry(registry, repository), "t") == content
        docker.remove(f"{name}:t")
        docker.pull(name, "t")
    finally:
        docker.remove(f"{name}:t")


def test_docker_pushes_over_https(engine: rig.EngineAddress, pushes: Https) -> None:
    # 127.0.0.0/8 is a place whose certificate Docker does not verify, but it tries HTTPS first.
    check_push(engine, pushes.host, RegistryClient(pushes.plain.host))
    pushes.plain.wait_for(r"PUT pushed/\w+:t 201")
    pushes.plain.check_log()


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("crane", "SSL_CERT_FILE={dir}/ca.crt crane copy localhost:{port}/{name}:t localhost:{port}/{name}-copy:t"),
        (
            "skopeo",
            "skopeo copy --src-cert-dir={dir} --dest-cert-dir={dir}"
            " docker://localhost:{port}/{name}:t docker://localhost:{port}/{name}-copy:t",
        ),
    ],
)
def test_tools_copy_over_https(pushes: Https, tools: list[str], program: str, command: str) -> None:
    around(tools, program)
    name, client = f"https/{uuid.uuid4().hex[:12]}", RegistryClient(pushes.plain.host)
    client.push_image(name, "t", os.urandom(2_000_000))
    directory = run_tool(tools, "mktemp -d").strip()
    try:
        run_tool(tools, f"cat > {directory}/ca.crt <<END\n{pushes.ca.decode()}END\n")
        run_tool(tools, command.format(dir=directory, port=pushes.host.rpartition(":")[2], name=name))
        assert client.get(f"/v2/{name}-copy/manifests/t").status == 200
    finally:
        run_tool(tools, f"rm -r {directory}")


def test_tls_1_2_has_keys_of_one_session_and_authenticated_encryption_alone(tmp_path: Path) -> None:
    """RFC 9325, 4.1 and 4.2: no RSA key exchange, and no CBC."""
    with serving(NOBODY, tmp_path, is_rsa=True) as https:
        host, _, port = https.host.partition(":")

        def handshake(ciphers: str) -> str:
            context = ssl.create_default_context(cadata=https.ca.decode())
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(ciphers)
            with (
                socket.create_connection((host, int(port)), timeout=10) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as connection,
            ):
                agreed = connection.cipher()
                assert agreed is not None
                return agreed[0]

        for ciphers in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA", "ECDHE-RSA-AES128-SHA", "kRSA"):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                handshake(ciphers)
        for ciphers in ("ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-CHACHA20-POLY1305"):
            assert handshake(ciphers) == ciphers
        assert handshake("DEFAULT").startswith("ECDHE-RSA-")


def test_plain_http_at_the_https_port_is_told_so(https: Https, node: Node, small_image: PushedImage) -> None:
    node.use_mirror(https.host)
    with pytest.raises(PullFailed, match="400"):
        node.pull(small_image.name)
    https.plain.check_log()


def test_a_node_pulls_over_ipv6(
    engine: rig.EngineAddress, one_node: Node, small_image: PushedImage, tmp_path: Path
) -> None:
    small_image.pull_into(engine)
    one_node.clean()
    with running(engine, tmp_path, "--listen", r"tcp6:0:interface=\:\:1") as daemon:
        # containerd 1.6 and 1.7 take no such address in their hosts.toml, and leave all of it aside.
        one_node.use_mirror(daemon.wait_for(r"listening on (\[::1\]:\d+)")[1])
        one_node.pull(small_image.name)
        daemon.wait_for(r" ::1 GET \S+ blob sha256:")
        daemon.check_log()


def test_docker_pushes_over_ipv6(engine: rig.EngineAddress, tmp_path: Path) -> None:
    with running(NOBODY, tmp_path, "--listen", r"tcp6:0:interface=\:\:1") as daemon:
        check_push(engine, daemon.wait_for(r"listening on (\[::1\]:\d+)")[1], RegistryClient(daemon.host))
        daemon.check_log()
