"""How long a pod of a k3d cluster waits for its image, by each way that the image can take into the nodes.

    python bench/node.py --registry-binary docker-registry --registry-data DIR

README.md beside this file says what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import select
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from attrs import frozen

sys.path.append(str(Path(__file__).resolve().parent.parent))
from tests.integration.support import image, rig
from tests.integration.support.clusters import MORE, Clusters
from tests.integration.support.docker_api import Docker
from tests.integration.support.linked import build
from tests.integration.support.node import Node
from tests.integration.test_linking import Cluster

# What developers have in their images: compilers and interpreters, 1.36 GB in 27,600 files.
PACKAGES = f"""
FROM {image.BASE}
RUN apt-get update
RUN apt-get install -y --no-install-recommends gcc g++ make
RUN apt-get install -y --no-install-recommends golang-go
RUN apt-get install -y --no-install-recommends nodejs
RUN apt-get install -y --no-install-recommends python3-dev python3-numpy git
CMD ["true"]
"""
# Few large files that do not compress, as no developer has them.
NOISE = f"FROM {image.BASE}\n" + "".join(f"RUN head -c 200M /dev/urandom > /noise{number}\n" for number in range(6))
CHANGE = "FROM {name}\nRUN head -c 100k /dev/urandom > /changed\n"
PORT = 5919
# docker-registry, as the engine reaches it.
LOOPBACK = f"127.0.0.1:{PORT}"

Pulls = Callable[[Sequence[Node], str], float]


@frozen
class Row:
    """Seconds of one way, and bytes that the second node's copy takes on the disk."""

    way: str
    cold: float
    both: float
    changed: float
    disk: float

    def cells(self) -> list[str]:
        return [
            self.way,
            *(f"{each:.2f} s" for each in (self.cold, self.both, self.changed)),
            f"{self.disk / 1e6:.0f} MB",
        ]


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


HEAD = ("way", "cold pull", "two nodes at once", "after a small change", "disk of one more node")


class Bench:
    """A cluster of a server and an agent, and images of the engine that runs it."""

    def __init__(self, cluster: Cluster, runs: int) -> None:
        self._cluster = cluster
        self._nodes = [cluster.server, cluster.agent]
        self._machine = cluster.machine
        self._docker: Docker = cluster.machine.docker
        self._runs = runs
        self.slowest_head = 0.0

    def rows(self, name: str, registry: Callable[[], contextlib.AbstractContextManager[str]]) -> Iterator[Row]:
        """Measure all ways of the image `name`, and of one that has a small layer more."""
        changed = f"{name}-changed"
        build(self._machine.engine, changed, CHANGE.format(name=name))
        with registry() as host:
            self._cluster.use_mirror(host)
            for each in (name, changed):
                self._docker.tag(each, f"{LOOPBACK}/{each}", "latest")
                self._docker.push(f"{LOOPBACK}/{each}", "latest")
            yield self._row("docker-registry", lambda nodes, name: pull(nodes, f"{LOOPBACK}/{name}"), name, changed)
            for each in (name, changed):
                self._docker.remove(f"{LOOPBACK}/{each}:latest")
        for way, switch in (("k3dreg", "off"), ("k3dreg, layers linked", "on")):
            with tempfile.TemporaryDirectory() as directory:
                options = ("--link-layers", switch, "--docker-root", str(self._machine.engine.directory / "data"))
                with self._cluster.daemon(Path(directory) / "k3dreg", *options) as daemon:
                    yield self._row(way, pull, name, changed)
                    if switch == "on":
                        # Not while pulls are measured: the engine works for each of these requests.
                        self._watch(daemon.host, name)
                        self._forget()
        yield self._row("`k3d image import`", self._import, name, changed)

    def save(self, name: str) -> float:
        started = time.monotonic()
        with self._docker.open("GET", f"/images/{name}/get") as response:
            while response.read(1 << 20):
                pass
        return time.monotonic() - started

    def _row(self, way: str, pulls: Pulls, name: str, changed: str) -> Row:
        cold, both, change, disk = [], [], [], []
        for _ in range(self._runs):
            self._forget()
            cold.append(pulls(self._nodes[:1], name))
            change.append(pulls(self._nodes[:1], changed))
            used = self._used()
            pulls(self._nodes[1:], name)
            disk.append(self._used() - used)
            self._forget()
            both.append(pulls(self._nodes, name))
        self._forget()
        median = statistics.median
        return Row(way, median(cold), median(both), median(change), median(disk))

    def _forget(self) -> None:
        self._cluster.forget()
        for node in self._nodes:
            node.ctr("content", "prune", "references")

    def _used(self) -> int:
        os.sync()
        found = os.statvfs(self._machine.engine.directory)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _import(self, nodes: Sequence[Node], name: str) -> float:
        started = time.monotonic()
        # It imports into all nodes of a cluster, or none: what one node alone would take cannot be told.
        self._machine.k3d(
            "image", "import", "--mode", "direct", "--cluster", "linking", f"docker.io/library/{name}:latest"
        )
        return time.monotonic() - started

    def _watch(self, host: str, name: str) -> None:
        """Pull while a client asks for the tag of another image, and keep the longest time that it waited."""
        words = ["nsenter", f"--target={self._machine.pid}", "--net", sys.executable, __file__, "--watch", host]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watching:
            pull(self._nodes, name)
            self.slowest_head = max(self.slowest_head, float(watching.communicate()[0]))


def watch(host: str) -> float:
    """Ask for the tag of another image until the standard input ends; return the longest time in seconds."""
    slowest = 0.0
    name = image.BASE.partition(":")[0]
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        started = time.monotonic()
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("HEAD", f"/v2/library/{name}/manifests/latest?ns=docker.io")
        assert connection.getresponse().status == 200
        connection.close()
        slowest = max(slowest, time.monotonic() - started)
    return slowest


def pull(nodes: Sequence[Node], name: str) -> float:
    """Pull an image into these nodes at once."""
    started = time.monotonic()
    threads = [threading.Thread(target=node.pull, args=(name,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - started


@contextlib.contextmanager
def registry(cluster: Cluster, command: Sequence[str], directory: str) -> Iterator[str]:
    """Debian's docker-registry in the engine's network, with its data in `directory`, as it sees that."""
    machine = cluster.machine
    config = (
        "version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\n"
        f'storage: {{filesystem: {{rootdirectory: "{directory}"}}}}\nhttp: {{addr: ":{PORT}", secret: bench}}\n'
    )
    words = ["nsenter", f"--target={machine.pid}", "--net", *command, "serve", "/dev/stdin"]
    with tempfile.TemporaryFile() as stdin:
        stdin.write(config.encode())
        stdin.seek(0)
        process = subprocess.Popen(words, stdin=stdin, stderr=subprocess.DEVNULL)
        try:
            for _ in range(100):
                with contextlib.suppress(AssertionError):
                    machine.run("bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{PORT}")
                    break
                time.sleep(0.1)
            yield f"{cluster.gateway}:{PORT}"
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def made_cluster() -> Iterator[Cluster]:
    engine, pid = rig.bridged()
    with tempfile.TemporaryDirectory() as home:
        machine = Clusters(engine, pid, Path(home))
        machine.prepare()
        machine.clear()
        machine.k3d("cluster", "create", "linking", *MORE, "--agents", "1")
        for node in machine.nodes("linking").values():
            # Where the stand-in's `ctr`, which `k3d image import` runs, looks for containerd.
            directory = node.address.chroot / "run/containerd"
            directory.mkdir(exist_ok=True)
            (directory / "containerd.sock").symlink_to("/run/k3s/containerd/containerd.sock")
        try:
            yield Cluster(machine)
        finally:
            machine.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how long a k3d node waits for its image.")
    parser.add_argument("--registry-binary", help="the docker-registry to start", default="docker-registry")
    parser.add_argument("--registry-data", help="directory for its data, as it sees it", default="/tmp/bench-node")
    parser.add_argument("--runs", type=int, default=3, help="figures are medians of this many runs")
    parser.add_argument("--watch", metavar="HOST:PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        print(watch(options.watch))
        return
    with made_cluster() as cluster:
        bench = Bench(cluster, options.runs)
        for name, text in (("k3dreg-bench-packages", PACKAGES), ("k3dreg-bench-noise", NOISE)):
            build(cluster.machine.engine, name, text)
            size = cluster.machine.docker.ask("GET", f"/images/{name}/json")["Size"]
            print(f"\n{name}, {size / 1e9:.2f} GB; `docker save` takes {bench.save(name):.1f} s\n", flush=True)
            start = partial(registry, cluster, shlex.split(options.registry_binary), options.registry_data)
            print(line(HEAD), line(["---"] * len(HEAD)), sep="\n", flush=True)
            for row in bench.rows(name, start):
                print(line(row.cells()), flush=True)
            print(f"\nlongest HEAD of another image's tag while layers are linked: {bench.slowest_head * 1000:.0f} ms")


if __name__ == "__main__":
    main()
