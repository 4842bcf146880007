"""Real engines that are not on this machine's socket: behind TLS with certificates on both sides, and behind ssh."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.certificates import Authority, Pair, write_docker_certificates
from tests.integration.conftest import PushedImage
from tests.integration.support import rig
from tests.integration.support.daemon import Daemon
from tests.integration.support.node import Node
from tests.integration.support.puller import Puller

pytestmark = pytest.mark.engines("docker29", "docker29-classic")


class TlsFront:
    """`dockerd --tlsverify -H tcp://`: hands to the engine's socket what comes from those whom `authority` signed."""

    def __init__(self, engine: str, authority: Authority, pair: Pair, directory: Path) -> None:
        directory.mkdir()
        write_docker_certificates(directory, authority, pair)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
        self._context.load_verify_locations(directory / "ca.pem")
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._engine = engine
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(taken,), daemon=True).start()

    def _serve(self, taken: socket.socket) -> None:
        """Two threads may not read and write one TLS connection at a time, so each side polls."""
        with contextlib.suppress(OSError), self._context.wrap_socket(taken, server_side=True) as client:
            with socket.socket(socket.AF_UNIX) as engine:
                engine.connect(self._engine)
                lock = threading.Lock()
                client.settimeout(0.02)
                threading.Thread(target=self._answers, args=(engine, client, lock), daemon=True).start()
                while True:
                    data = None
                    with lock, contextlib.suppress(TimeoutError, ssl.SSLWantReadError):
                        data = client.recv(65536)
                    if data == b"":
                        return
                    if data:
                        engine.sendall(data)

    @staticmethod
    def _answers(engine: socket.socket, client: ssl.SSLSocket, lock: threading.Lock) -> None:
        with contextlib.suppress(OSError):
            while data := engine.recv(262144):
                while data:
                    with lock, contextlib.suppress(TimeoutError, ssl.SSLWantWriteError):
                        data = data[client.send(data) :]
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        # Wakes the thread, which goes on to listen otherwise.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@contextlib.contextmanager
def daemon_for(url: str, directory: Path, **environment: str) -> Iterator[Daemon]:
    daemon = Daemon(rig.EngineAddress("remote", url), directory / "state", directory / "log")
    daemon.environment = environment
    daemon.start()
    try:
        yield daemon
        daemon.check_log()
    finally:
        daemon.stop()


def test_a_node_pulls_through_tls_with_certificates_on_both_sides(
    engine: rig.EngineAddress, small_image: PushedImage, node: Node, tmp_path: Path
) -> None:
    authority = Authority()
    client = write_docker_certificates(tmp_path / "client", authority, authority.sign("client"))
    front = TlsFront(engine.socket, authority, authority.sign("127.0.0.1"), tmp_path / "server")
    docker = small_image.pull_into(engine)
    environment = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(client)}
    try:
        with daemon_for(f"tcp://127.0.0.1:{front.port}", tmp_path, **environment) as daemon:
            daemon.wait_for("images come from Docker")
            node.use_mirror(daemon.host)
            node.pull(small_image.name)
            assert small_image.message in node.run(small_image.name)
    finally:
        front.close()
        docker.remove(small_image.name)


@pytest.mark.parametrize("wrong", ["authority", "name", "expired", "client"])
def test_a_certificate_that_is_wrong_is_refused_with_a_clear_line(
    engine: rig.EngineAddress, tmp_path: Path, wrong: str
) -> None:
    authority = Authority()
    shown = (Authority("another") if wrong == "client" else authority).sign("client")
    client = write_docker_certificates(tmp_path / "client", authority, shown)
    server = (Authority("another") if wrong == "authority" else authority).sign(
        "engine.example" if wrong == "name" else "127.0.0.1", begins=-3, ends=-2 if wrong == "expired" else 1
    )
    front = TlsFront(engine.socket, authority, server, tmp_path / "server")
    said = {
        "authority": "its certificate is not signed by the authority in ca.pem",
        "name": "its certificate is for another name",
        "expired": "its certificate has expired",
        "client": "it does not accept the certificate that k3dreg shows",
    }
    environment = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(client)}
    try:
        with daemon_for(f"tcp://127.0.0.1:{front.port}", tmp_path, **environment) as daemon:
            daemon.wait_for(f"no engine at .*{said[wrong]}")
    finally:
        front.close()


@pytest.fixture
def far(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Another machine, as far as ssh can tell: `user@host:port`, and a directory whose `ssh` knows the way."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    if sshd is None or shutil.which("ssh") is None or os.geteuid() != 0:
        rig.unavailable("ssh, sshd and root are needed:")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\n"
        f"StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n"
    )
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {(tmp_path / 'host.pub').read_text()}")
    (tmp_path / "ssh_config").write_text(f"IdentityFile {tmp_path}/user\nUserKnownHostsFile {tmp_path}/known\n")
    _write_program(here / "ssh", f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/ssh_config "$@"\n')
    Path("/run/sshd").mkdir(exist_ok=True)
    with (tmp_path / "sshd.log").open("wb") as log:
        process = subprocess.Popen([sshd or "", "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=log)
    try:
        _wait_for_port(port)
        yield f"{getpass.getuser()}@127.0.0.1:{port}", here
    finally:
        process.terminate()
        process.wait(20)


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _wait_for_port(port: int) -> None:
    end = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
            return
        assert time.monotonic() < end, "sshd did not start"
        time.sleep(0.05)


def ssh_processes(directory: Path) -> list[int]:
    """The ssh clients that run with the settings in this directory."""
    found = subprocess.run(["pgrep", "-f", f"^{shutil.which('ssh')} -F {directory}/"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def wait_until_there_is_no_ssh(directory: Path) -> None:
    end = time.monotonic() + 10
    while ssh_processes(directory):
        assert time.monotonic() < end, "ssh goes on"
        time.sleep(0.05)


def test_a_node_pulls_through_one_ssh_which_ends_with_k3dreg(
    engine: rig.EngineAddress, small_image: PushedImage, node: Node, tmp_path: Path, far: tuple[str, Path]
) -> None:
    host, programs = far
    docker = small_image.pull_into(engine)
    path = f"{programs}:{os.environ['PATH']}"
    try:
        with daemon_for(f"ssh://{host}{engine.socket}", tmp_path, PATH=path) as daemon:
            daemon.wait_for("images come from Docker")
            node.use_mirror(daemon.host)
            node.pull(small_image.name)
            assert small_image.message in node.run(small_image.name)
            assert len(ssh_processes(tmp_path)) == 1
        wait_until_there_is_no_ssh(tmp_path)
        assert (tmp_path / "sshd.log").read_text().count("Accepted publickey") == 1
    finally:
        docker.remove(small_image.name)


def test_an_ssh_that_ends_is_started_again_and_ends_with_a_k3dreg_that_is_killed(
    engine: rig.EngineAddress, small_image: PushedImage, tmp_path: Path, far: tuple[str, Path]
) -> None:
    host, programs = far
    docker = small_image.pull_into(engine)
    path = f"{programs}:{os.environ['PATH']}"
    with daemon_for(f"ssh://{host}{engine.socket}", tmp_path, PATH=path) as daemon:
        daemon.wait_for("images come from Docker")
        (first,) = ssh_processes(tmp_path)
        os.kill(first, signal.SIGKILL)
        # The next request to the engine starts another, or is told to come again in a second.
        puller, end = Puller(daemon.host, small_image.registry), time.monotonic() + 20
        while puller.manifest(small_image.repository, small_image.tag).status != 200:
            assert time.monotonic() < end, daemon.log()
            time.sleep(0.1)
        assert puller.image(small_image.repository, small_image.tag) > 0
        assert first not in ssh_processes(tmp_path)
        daemon.kill()
        wait_until_there_is_no_ssh(tmp_path)
    docker.remove(small_image.name)


def test_an_engine_that_is_not_there_behind_ssh_is_told(
    engine: rig.EngineAddress, tmp_path: Path, far: tuple[str, Path]
) -> None:
    host, programs = far
    path = f"{programs}:{os.environ['PATH']}"
    with daemon_for(f"ssh://{host}/nonexistent.sock", tmp_path, PATH=path) as daemon:
        daemon.wait_for(r"no engine at ssh://.*open failed")


def test_ssh_that_may_not_log_in_says_so(engine: rig.EngineAddress, tmp_path: Path, far: tuple[str, Path]) -> None:
    host, programs = far
    (tmp_path / "user.pub").write_text("")
    path = f"{programs}:{os.environ['PATH']}"
    with daemon_for(f"ssh://{host}{engine.socket}", tmp_path, PATH=path) as daemon:
        daemon.wait_for(r"no engine at ssh://.*Permission denied \(publickey")
