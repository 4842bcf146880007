"""A client cannot aim Docker at what listens on this machine, nor find out what does."""

from __future__ import annotations

import contextlib
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from attrs import define, field

from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.registry_client import Answer, RegistryClient
from tests.integration.support.rig import EngineAddress

CLOSED = "127.0.0.1:1"


@define
class Listener:
    """A service of this machine's that is no registry.  It counts connections, and says nothing."""

    port: int
    connections: list[object] = field(factory=list)


@contextlib.contextmanager
def listening() -> Iterator[Listener]:
    with socket.socket() as door:
        door.bind(("0.0.0.0", 0))
        door.listen()
        listener = Listener(door.getsockname()[1])

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, peer = door.accept()
                    connection.close()
                    listener.connections.append(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener
        finally:
            door.shutdown(socket.SHUT_RDWR)
            thread.join()


def ask(daemon: Daemon, registry: str, kind: str = "manifests/1") -> Answer:
    return RegistryClient(daemon.host).ask("GET", f"/v2/{uuid.uuid4().hex}/{kind}?ns={registry}")


def hosts(port: int) -> Sequence[str]:
    """Ways to write this machine's address."""
    names = ("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]")
    return [f"{name}:{port}" for name in names]


@pytest.mark.engines("docker29", "docker29-classic", "docker20")
@pytest.mark.parametrize("options", [(), ("--origin-fallback",)], ids=["docker", "fallback"])
def test_nothing_on_this_machine_is_asked(engine: EngineAddress, tmp_path: Path, options: Sequence[str]) -> None:
    digest = f"sha256:{uuid.uuid4().hex * 2}"
    with listening() as listener, running(engine, tmp_path, "--allow-registry", "*", *options) as daemon:
        for host in hosts(listener.port):
            for kind in ("manifests/1", f"manifests/{digest}", f"blobs/{digest}"):
                answer = ask(daemon, host, kind)
                # A blob or digest that Docker cannot give is not there, as it would not be without the option.
                assert answer.status in ((403,) if kind == "manifests/1" else (403, 404)), answer
        # What is open and what is closed cannot be told apart.
        said = [ask(daemon, host) for host in (f"127.0.0.1:{listener.port}", CLOSED)]
        assert [answer.code for answer in said] == ["DENIED", "DENIED"]
        texts = [answer.json["errors"][0]["message"].replace(CLOSED, "H") for answer in said]
        assert len({text.replace(f"127.0.0.1:{listener.port}", "H") for text in texts}) == 1
        assert listener.connections == []
        assert f"--allow-registry '*' --allow-registry {CLOSED} " in said[1].json["errors"][0]["detail"]["advice"]
        daemon.wait_for(
            f"k3dreg does not ask {CLOSED} for an image: it leads to this machine or its link, --allow-registry does"
        )


@pytest.mark.engines("docker29")
def test_what_is_listed_or_docker_has_an_image_of_is_asked(engine: EngineAddress, tmp_path: Path) -> None:
    docker = Docker(engine.socket)
    with listening() as listener:
        host = f"localhost:{listener.port}"
        with running(engine, tmp_path, "--allow-registry", "*", "--allow-registry", host) as daemon:
            assert ask(daemon, host).status == 502
            assert listener.connections
            assert ask(daemon, f"127.0.0.1:{listener.port}").status == 403
        with running(engine, tmp_path, "--allow-registry", "*") as daemon:
            assert ask(daemon, host).status == 403
            name = f"{host}/{uuid.uuid4().hex}"
            docker.build(name, {"Dockerfile": b"FROM scratch\nLABEL a=b\n"})
            try:
                assert ask(daemon, host).status == 502
            finally:
                docker.remove(f"{name}:latest")


@pytest.mark.engines("docker29")
def test_with_a_list_no_other_registry_is_asked(engine: EngineAddress, tmp_path: Path) -> None:
    with running(engine, tmp_path, "--allow-registry", "ghcr.io") as daemon:
        answer = ask(daemon, "registry.invalid")
        assert (answer.status, answer.code) == (403, "DENIED")
        assert "--allow-registry registry.invalid " in answer.json["errors"][0]["detail"]["advice"]
    with running(engine, tmp_path, "--allow-registry", "*.invalid") as daemon:
        # It is asked: what is wrong with it is for the log, as Docker has no image of it.
        answer = ask(daemon, "registry.invalid")
        assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
        assert "no such host" not in str(answer.json)
        daemon.wait_for("Docker could not pull registry.invalid/.*: .*registry.invalid")
