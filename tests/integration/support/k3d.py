"""Containers of k3dreg, made as k3d makes a registry's (k3d 5.9: pkg/client/registry.go, pkg/runtimes/docker)."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.integration.support.daemon import REGISTRIES
from tests.integration.support.docker_api import Docker
from tests.integration.support.rig import EngineAddress

# Where k3d's users mount the engine's socket.
SOCKET = "/var/run/docker.sock"
_LISTENING = r"listening on \S+:\d+"
_DEFECTS = ("Traceback (most recent call last)", "Unhandled error in Deferred", "was never awaited", "Unable to write")


def registry(
    image: str,
    name: str,
    network: str,
    volumes: list[str],
    *,
    port: int,
    cluster: str = "",
    environment: Mapping[str, str] | None = None,
    enforce_port_match: bool = False,
) -> dict[str, Any]:
    """The body of `POST /containers/create`.

    `registries.create` gives it the cluster's name and `REGISTRY_PROXY_REMOTEURL`, `k3d registry create` neither.
    `port` is the host's; k3d has chosen one before it makes the container.
    """
    inner = port if enforce_port_match else 5000
    variables = {"K3S_KUBECONFIG_OUTPUT": "/output/kubeconfig.yaml", **(environment or {})}
    if enforce_port_match:
        variables["REGISTRY_HTTP_ADDR"] = f":{port}"
    return {
        "Image": image,
        "Hostname": name,
        "Cmd": [],
        "Env": [f"{variable}={value}" for variable, value in variables.items()],
        "Labels": {
            "app": "k3d",
            "k3d.cluster": cluster,
            "k3d.registry.host": "",
            "k3d.registry.hostIP": "0.0.0.0",
            "k3d.role": "registry",
            "k3d.version": "v5.9.0",
            "k3s.registry.port.external": str(port),
            "k3s.registry.port.internal": str(inner),
        },
        "ExposedPorts": {f"{inner}/tcp": {}},
        "HostConfig": {
            "Binds": volumes,
            "Init": True,
            "NetworkMode": network,
            "PortBindings": {f"{inner}/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(port)}]},
            "Privileged": True,
            "RestartPolicy": {"Name": "unless-stopped"},
            "Tmpfs": {"/run": "", "/var/run": ""},
            "UsernsMode": "host",
        },
    }


class Container:
    """A container of k3dreg that was made and not yet started."""

    def __init__(self, docker: Docker, identity: str) -> None:
        self._docker = docker
        self._path = f"/containers/{identity}"
        self._begin = 0

    def start(self) -> float:
        """Returns when it listens; the seconds that took."""
        began = time.monotonic()
        self.begin()
        self.wait_for(_LISTENING)
        return time.monotonic() - began

    def begin(self) -> None:
        """Start it, and wait for nothing."""
        self._begin += len(self.log())
        self._docker.ask("POST", f"{self._path}/start")

    def inspect(self) -> dict[str, Any]:
        found: dict[str, Any] = self._docker.ask("GET", f"{self._path}/json")
        return found

    def address(self, network: str) -> str:
        """Its IP address in the network."""
        return str(self.inspect()["NetworkSettings"]["Networks"][network]["IPAddress"])

    def log(self) -> str:
        """What it has written since it was started last.

        The engine puts it into frames with a header of eight bytes, the last four of which are the length.
        """
        data = self._docker.call("GET", f"{self._path}/logs", query={"stdout": "1", "stderr": "1"})
        text = b""
        while data:
            length = int.from_bytes(data[4:8], "big")
            text, data = text + data[8 : 8 + length], data[8 + length :]
        return text.decode(errors="replace")[self._begin :]

    def wait_for(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        """Until the log has a line like it."""
        end = time.monotonic() + seconds
        while True:
            running = self.inspect()["State"]["Running"]
            log = self.log()
            if found := re.search(pattern, log):
                return found
            assert running, f"the container has ended:\n{log}"
            assert time.monotonic() < end, f"no {pattern!r} within {seconds} s:\n{log[-3000:]}"
            time.sleep(0.05)

    def changes(self) -> list[str]:
        """The files that it made or changed, volumes and tmpfs aside, without directories that only hold such."""
        found = [change["Path"] for change in self._docker.ask("GET", f"{self._path}/changes") or ()]
        return [path for path in found if not any(other.startswith(f"{path}/") for other in found)]

    def stop(self) -> tuple[int, float]:
        """`docker stop`, which kills it after ten seconds (status 137).  Returns its status and the seconds it took."""
        began = time.monotonic()
        self._docker.ask("POST", f"{self._path}/stop", t="10")
        return int(self.inspect()["State"]["ExitCode"]), time.monotonic() - began

    def kill(self) -> None:
        """`docker kill`: nothing is done any more."""
        self._docker.ask("POST", f"{self._path}/kill")
        self._docker.ask("POST", f"{self._path}/wait")

    def run(self) -> tuple[int, str]:
        """Start it and wait for its end; its status and what it wrote."""
        self._docker.ask("POST", f"{self._path}/start")
        status = self._docker.ask("POST", f"{self._path}/wait")["StatusCode"]
        return int(status), self.log()

    def check_log(self) -> None:
        """Asserts that nothing in the log is a defect."""
        log = self.log()
        for words in _DEFECTS:
            assert words not in log, log[-4000:]


@contextlib.contextmanager
def container(docker: Docker, name: str, body: Mapping[str, Any]) -> Iterator[Container]:
    """Made, and in the end removed with its anonymous volumes, as k3d removes it."""
    allowed = f"K3DREG_ALLOW_REGISTRY={REGISTRIES}"
    body = {**body, "Env": [*body.get("Env", ()), allowed]}
    made = docker.ask("POST", "/containers/create", body, name=name)["Id"]
    try:
        yield Container(docker, made)
    finally:
        docker.ask("DELETE", f"/containers/{made}", force="1", v="1")


@contextlib.contextmanager
def network(docker: Docker, name: str) -> Iterator[str]:
    made = docker.ask("POST", "/networks/create", {"Name": name, "Driver": "bridge"})["Id"]
    try:
        yield name
    finally:
        docker.ask("DELETE", f"/networks/{made}")


@contextlib.contextmanager
def shared_with(engine: EngineAddress) -> Iterator[tuple[Path, str]]:
    """A directory that the engine's containers can mount: where it is here, and where it is for the engine."""
    root = Path(engine.socket.removesuffix(engine.inner_socket) or "/")
    name = f"tmp/k3dreg-{uuid.uuid4().hex[:12]}"
    (root / name).mkdir()
    yield root / name, f"/{name}"
    subprocess.run(["rm", "-r", root / name], check=True)
