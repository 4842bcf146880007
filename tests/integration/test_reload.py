"""Settings are read again while images are pulled, and the service manager hears of all that matters to it."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import pytest

from tests.integration.conftest import PushedImage
from tests.integration.support import rig
from tests.integration.support.daemon import Daemon, program
from tests.integration.support.images import MB
from tests.integration.support.puller import Puller

pytestmark = pytest.mark.engines("docker29")

# Seconds.
MAX_WAIT = 60


class ServiceManager:
    """The end of sd_notify(3) that listens, all the time: a socket holds ten messages, and what is not read is lost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._heard: SimpleQueue[str] = SimpleQueue()
        self._listening = Thread(target=self._listen)
        self._listening.start()

    def hear(self, words: str) -> str:
        """The next message that has them.  Raises `Empty` if none comes within a minute, whatever else comes."""
        end = time.monotonic() + MAX_WAIT
        while words not in (message := self._heard.get(timeout=max(0.0, end - time.monotonic()))):
            pass
        return message

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(b"", str(self.path))
        self._listening.join()
        self._socket.close()

    def _listen(self) -> None:
        while message := self._socket.recv(65536):
            self._heard.put(message.decode())


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(tmp_path / "notify")
    yield manager
    manager.close()


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """An empty settings file."""
    path = tmp_path / "k3dreg.toml"
    path.write_text("")
    return path


@pytest.fixture
def managed(
    engine: rig.EngineAddress, manager: ServiceManager, settings: Path, options: tuple[str, ...], tmp_path: Path
) -> Iterator[Daemon]:
    """A daemon, not started yet, that has a service manager and a settings file."""
    daemon = Daemon(engine, tmp_path / "state", tmp_path / "log", "--config", str(settings), *options)
    daemon.environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1000000"}
    yield daemon
    daemon.stop()


def test_a_pull_under_way_does_not_notice_a_reload(
    managed: Daemon, manager: ServiceManager, settings: Path, engine: rig.EngineAddress, layered_image: PushedImage
) -> None:
    docker = layered_image.pull_into(engine)
    managed.start()
    manager.hear("READY=1")
    manager.hear("STATUS=images come from Docker ")
    puller = Puller(managed.host, layered_image.registry)
    digest, size = max(puller.layers(layered_image.repository, "1"), key=lambda part: part[1])
    # More than sockets hold: the daemon is in the middle of it when the first bytes are here.
    assert size > 32 * MB

    def reload_twice() -> None:
        settings.write_text('cache-size = "1GB"\nalias = ["other.example:5000"]\nlog-format = "json"')
        managed.send(signal.SIGHUP)
        manager.hear("RELOADING=1\nMONOTONIC_USEC=")
        assert "settings" not in manager.hear("READY=1")
        settings.write_text("cache-sise = 1")
        managed.send(signal.SIGHUP)
        manager.hear("RELOADING=1\nMONOTONIC_USEC=")
        assert "there is no option 'cache-sise'" in manager.hear("READY=1")
        assert not re.search(rf"blob {digest[:19]}\S* 200", managed.log()), "it was not under way"

    assert puller.blob(layered_image.repository, digest, size, halfway=reload_twice) == size
    managed.wait_for("settings read again: changed alias, cache-size")
    managed.wait_for("to apply these changed settings: log-format")
    managed.wait_for("the settings were not changed: .*'cache-sise'")
    managed.wait_for(rf"blob {digest[:19]}\S* 200")
    assert puller.image(layered_image.repository, "1") > size
    manager.hear("WATCHDOG=1")
    managed.check_log()
    managed.stop()
    manager.hear("STOPPING=1")
    docker.remove(layered_image.name)


def test_a_daemon_is_started_by_the_first_connection_to_either_of_two_sockets(
    engine: rig.EngineAddress, small_image: PushedImage, tmp_path: Path
) -> None:
    if shutil.which("systemd-socket-activate") is None:
        rig.unavailable("there is no systemd-socket-activate (Debian: systemd):")
    docker = small_image.pull_into(engine)
    hosts = [f"127.0.0.1:{free_port('127.0.0.1')}", f"[::1]:{free_port('::1')}"]
    # Twisted wants each socket's name, which systemd itself tells by default.
    command = ["systemd-socket-activate", "--fdname=one:two", *(f"--listen={host}" for host in hosts)]
    command += [*program(), "--docker", engine.url, "--state-dir", str(tmp_path / "state")]
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=tmp_path)
    try:
        eventually(lambda: log.read_text().count("Listening on") == 2)
        assert "k3dreg 0" not in log.read_text()
        for host in (hosts[1], hosts[0]):
            assert Puller(host, small_image.registry).image(small_image.repository, "1") > 0
    finally:
        process.terminate()
        assert process.wait(MAX_WAIT) in (0, -signal.SIGTERM), log.read_text()
    assert [f"listening on {host}" in log.read_text() for host in hosts] == [True, True]
    docker.remove(small_image.name)


def free_port(host: str) -> int:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        number: int = free.getsockname()[1]
    return number


def eventually(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + MAX_WAIT
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)
