"""Real k3d clusters on the engine that has bridge networks (`.ci/engines`, docker29-bridged).

Only the nodes' image is a stand-in (`k3s/`): rancher/k3s comes from a registry that tests do not reach.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from tests.integration.support import image, rig
from tests.integration.support.docker_api import Docker, DockerError, build_context
from tests.integration.support.node import Node, PullFailed

NODE_IMAGE = "k3dreg-test-k3s:v1.36.2-k3s1"
# The volume of the registry of the README and the examples.
VOLUME = "k3d-registry.localhost"
HERE = Path(__file__).parent / "k3s"
# The stand-in has no load balancer's image.  k3d's tools container may be any that waits.
MORE = ("--no-lb", "--image", NODE_IMAGE, "--timeout", "120s")


def build_node_image(engine: rig.EngineAddress, network: str) -> None:
    """Build the stand-in for k3s' image, in a network of the engine's."""
    files = {file.name: file.read_bytes() for file in HERE.iterdir() if file.is_file()}
    for command in ("containerd", "containerd-shim-runc-v2", "ctr"):
        files[command] = rig.program(command).read_bytes()
    context = build_context(files)
    words = ["build", "--network", network, "--build-arg", f"BASE={image.BASE}", "--tag", NODE_IMAGE, "-"]
    image.shared(engine, NODE_IMAGE, context, lambda: image.client(engine, *words, stdin=context))


def documented(beginning: str) -> list[str]:
    """Return the words of the README's first command that begins so."""
    text = (rig.REPOSITORY / "README.md").read_text().replace("\\\n", " ")
    command = re.search(rf"^    ({re.escape(beginning)}.*)$", text, re.MULTILINE)
    assert command, f"README.md has no command that begins with {beginning}"
    return shlex.split(command[1])


class ClusterNode(Node):
    """A node that is a container, in namespaces of its own."""

    def __init__(self, name: str, pid: int) -> None:
        root = Path(f"/proc/{pid}/root")
        super().__init__(rig.NodeAddress(name, root / "run/k3s/containerd/containerd.sock", root))
        self.pid = pid

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net"]


# What the first process of a node of kind does.
KIND = """
set -e
mkdir -p /etc/containerd /var/lib/containerd
cat > /etc/containerd/config.toml <<END
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins.'io.containerd.cri.v1.images'.registry]
  $CONFIG_PATH
END
exec containerd
"""


class KindNode(ClusterNode):
    """A node as kind makes it."""

    def __init__(self, name: str, pid: int) -> None:
        super().__init__(name, pid)
        root = Path(f"/proc/{pid}/root")
        self.address = rig.NodeAddress(name, root / "run/containerd/containerd.sock", root)


def _rights(docker: Docker) -> dict[str, object]:
    """Return the rights of a node's container.

    Docker 20.10 wants to give a privileged one capabilities that the machine of the tests may not have itself.
    """
    if not docker.ask("GET", "/version")["Version"].startswith("20.10"):
        return {"Privileged": True}
    return {
        "CapAdd": ["SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN"],
        "SecurityOpt": ["seccomp=unconfined", "apparmor=unconfined"],
        "MaskedPaths": [],
        "ReadonlyPaths": [],
        "DeviceCgroupRules": ["a *:* rwm"],
        "Binds": ["/sys/fs/cgroup:/sys/fs/cgroup"],
    }


@contextlib.contextmanager
def running_kind_node(
    docker: Docker, network: str, config_path: str = 'config_path = "/etc/containerd/certs.d"'
) -> Iterator[KindNode]:
    """A container with kind's labels and volume, in this network."""
    name = f"k3dreg-test-kind-{uuid.uuid4().hex[:8]}"
    body = {
        "Image": NODE_IMAGE,
        "Entrypoint": ["sh", "-c", KIND],
        "Env": [f"CONFIG_PATH={config_path}"],
        "Labels": {"io.x-k8s.kind.cluster": "kind", "io.x-k8s.kind.role": "worker"},
        "Volumes": {"/var": {}},
        "HostConfig": {**_rights(docker), "NetworkMode": network, "Tmpfs": {"/run": "", "/tmp": ""}},
    }
    made = docker.ask("POST", "/containers/create", body, name=name)["Id"]
    try:
        docker.ask("POST", f"/containers/{made}/start")
        node = KindNode(name, docker.ask("GET", f"/containers/{made}/json")["State"]["Pid"])
        end = time.monotonic() + 30
        while not node.address.socket.exists():
            assert time.monotonic() < end, docker.call("GET", f"/containers/{made}/logs", query={"stderr": "1"})
            time.sleep(0.1)
        yield node
    finally:
        with contextlib.suppress(DockerError):  # a test may have removed it
            docker.ask("DELETE", f"/containers/{made}", force="1", v="1")


@frozen
class Clusters:
    """k3d, as a user of the engine's machine has it.  `pid` is a process in the engine's network namespace."""

    engine: rig.EngineAddress
    pid: int
    home: Path

    @property
    def docker(self) -> Docker:
        return Docker(self.engine.socket)

    def prepare(self) -> None:
        """Build k3dreg's image and the nodes', with the engine's own network."""
        assert documented("docker build") == ["docker", "build", "-t", "k3dreg", "."]
        image.build(self.engine, "k3dreg:latest", network="default")
        build_node_image(self.engine, "default")

    def run(self, *words: str | Path) -> str:
        """Run a command in the engine's network, at the top of this repository."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "DOCKER_HOST": self.engine.url,
            "K3D_IMAGE_TOOLS": NODE_IMAGE,
        }
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "--net", *words],
            cwd=rig.REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=240,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(map(str, words))} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def k3d(self, *words: str) -> str:
        return self.run(rig.program("k3d"), *words)

    def nodes(self, cluster: str) -> dict[str, Node]:
        """Return the cluster's nodes that run, by their names."""
        filters = f'{{"label": ["k3d.cluster={cluster}"], "status": ["running"]}}'
        found: dict[str, Node] = {}
        for container in self.docker.ask("GET", "/containers/json", filters=filters):
            if container["Labels"]["k3d.role"] in ("server", "agent"):
                name = container["Names"][0].lstrip("/")
                found[name] = ClusterNode(name, self.docker.ask("GET", f"/containers/{name}/json")["State"]["Pid"])
        return found

    def clear(self) -> None:
        """Delete all clusters and registries of k3d, and what was pushed."""
        self.k3d("cluster", "delete", "--all")
        self.k3d("registry", "delete", "--all")
        self.docker.call("DELETE", f"/volumes/{VOLUME}", query={"force": "1"})


def pull_as_kubelet_does(node: Node, name: str, seconds: float = 60) -> None:
    """Pull, and when that fails, again after a moment."""
    end = time.monotonic() + seconds
    while True:
        try:
            node.pull(name)
        except PullFailed:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
        else:
            return
