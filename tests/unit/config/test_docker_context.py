"""Which engine is meant, by Docker's own settings."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path

import pytest

from k3dreg.config.docker_context import locate_engine, read_tls, usual_socket, usual_sockets
from k3dreg.config.engine_address import EngineAddress, TlsMaterial
from k3dreg.oci.errors import UsageError


def make_context(docker: Path, name: str, endpoint: object, tls: dict[str, bytes] | None = None) -> None:
    """A context as `docker context create` writes it."""
    key = hashlib.sha256(name.encode()).hexdigest()
    meta = docker / "contexts/meta" / key
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": endpoint}}))
    for file, text in (tls or {}).items():
        directory = docker / "contexts/tls" / key / "docker"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / file).write_bytes(text)


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    directory = tmp_path / ".docker"
    directory.mkdir()
    return directory


def test_what_is_said_wins_over_docker_host_and_that_over_contexts(tmp_path: Path, docker: Path) -> None:
    make_context(docker, "far", {"Host": "tcp://far:1"})
    make_context(docker, "near", {"Host": "unix:///near.sock"})
    (docker / "config.json").write_text(json.dumps({"currentContext": "near"}))
    environment = {"HOME": str(tmp_path), "DOCKER_HOST": "tcp://host:1", "DOCKER_CONTEXT": "far"}
    assert str(locate_engine("unix:///said.sock", environment)) == "unix:///said.sock"
    assert str(locate_engine("", environment)) == "tcp://host:1"
    del environment["DOCKER_HOST"]
    assert str(locate_engine("", environment)) == "tcp://far:1"
    del environment["DOCKER_CONTEXT"]
    assert str(locate_engine("", environment)) == "unix:///near.sock"


def test_another_directory_of_dockers_settings_is_honoured(tmp_path: Path) -> None:
    make_context(tmp_path / "elsewhere", "far", {"Host": "ssh://me@far"})
    environment = {"HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path / "elsewhere"), "DOCKER_CONTEXT": "far"}
    assert locate_engine("", environment) == EngineAddress(host="far", ssh=True, user="me")


def test_a_context_brings_its_own_certificates(tmp_path: Path, docker: Path) -> None:
    make_context(docker, "far", {"Host": "tcp://far"}, {"ca.pem": b"CA", "cert.pem": b"CERT", "key.pem": b"KEY"})
    found = locate_engine("", {"HOME": str(tmp_path), "DOCKER_CONTEXT": "far"})
    assert found == EngineAddress(host="far", port=2376, tls=TlsMaterial(b"CA", b"CERT", b"KEY"))


def test_certificates_of_the_environment_are_for_tcp_only(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"CA")
    environment = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    assert locate_engine("tcp://far:2376", environment).tls == TlsMaterial(ca=b"CA")
    assert locate_engine("unix:///a.sock", environment).tls is None
    assert locate_engine("tcp://far:2376", {**environment, "DOCKER_TLS_VERIFY": ""}).tls is None


def test_a_key_is_not_shown_when_an_address_is_printed() -> None:
    address = EngineAddress(host="far", port=2376, tls=TlsMaterial(key=b"SECRET"))
    assert "SECRET" not in repr(address)


@pytest.mark.parametrize(
    ("endpoint", "complaint"),
    [
        (None, "has no endpoint"),
        ({"Host": "tcp://far", "SkipTLSVerify": True}, "skips the verification"),
        ({"Host": "carrier-pigeon://far"}, "use unix://"),
    ],
)
def test_a_context_that_cannot_be_used_is_a_usage_line(
    tmp_path: Path, docker: Path, endpoint: object, complaint: str
) -> None:
    make_context(docker, "far", endpoint)
    with pytest.raises(UsageError, match=complaint):
        locate_engine("", {"HOME": str(tmp_path), "DOCKER_CONTEXT": "far"})


def test_a_context_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Docker context is called 'gone'"):
        locate_engine("", {"HOME": str(tmp_path), "DOCKER_CONTEXT": "gone"})


def test_half_of_a_pair_of_certificate_and_key_is_a_usage_line(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_bytes(b"CERT")
    with pytest.raises(UsageError, match=r"only one of cert\.pem and key\.pem"):
        read_tls(tmp_path)
    with pytest.raises(UsageError, match="no directory"):
        read_tls(tmp_path / "gone")


def test_the_default_context_and_a_broken_settings_file_mean_the_usual_socket(tmp_path: Path, docker: Path) -> None:
    expected = EngineAddress(path=usual_socket({"HOME": str(tmp_path)}))
    for text in ('{"currentContext": "default"}', "{", "[]"):
        (docker / "config.json").write_text(text)
        assert locate_engine("", {"HOME": str(tmp_path)}) == expected


def test_the_first_socket_that_may_be_used_is_taken_and_else_the_default() -> None:
    environment = {"HOME": "/home/me", "XDG_RUNTIME_DIR": "/run/user/1"}
    for path in (
        "/run/user/1/docker.sock",
        "/home/me/.colima/default/docker.sock",
        "/home/me/.orbstack/run/docker.sock",
    ):
        assert path in usual_sockets(environment)
        assert usual_socket(environment, lambda tried, path=path: tried == path) == path  # type: ignore[misc]
    assert usual_socket(environment, lambda _: True) == "/var/run/docker.sock"
    assert usual_socket(environment, lambda _: False) == "/var/run/docker.sock"


def test_a_plain_file_is_no_socket(tmp_path: Path) -> None:
    rootless = tmp_path / "docker.sock"
    rootless.write_text("")
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    before = usual_socket(environment)
    assert before != str(rootless)
    rootless.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(rootless))
        # A machine that has Docker where it usually is keeps to that.
        assert usual_socket(environment) in (str(rootless), "/var/run/docker.sock")
