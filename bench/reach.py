"""Each thing that k3dreg is to be fast at, beside what it is to be compared with, in one run on one machine.

    python bench/reach.py --docker unix:///var/run/docker.sock --data-root /var/lib/docker

README.md beside this file says what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from attrs import frozen

sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench import servers
from bench.client import Image, Pulled, ask
from bench.pull import REPOSITORY, TAG, make_layers, own_registry
from bench.servers import Server
from tests.integration.support.docker_api import Docker
from tests.integration.support.images import MB, LayerMaker, noise
from tests.integration.support.node import Node
from tests.integration.support.rig import NodeAddress
from tests.integration.support.upstream import Upstream

REBUILT, OTHER = "2", "other"
HERD, CLIENTS, ASKERS = 50, 8, 16
# Bytes of the layer that a rebuild has changed.
_SMALL = 100_000
# The way of a k3dreg that cannot read Docker's files, and the options that make it so.
_API = "through the API"
_NO_FILES = ("--docker-root", "/nonexistent", "--content-store", "/nonexistent", "--reader", "stopped")

Start = Callable[[], contextlib.AbstractContextManager[Server]]


@frozen
class Line:
    """`measured` and `beside` in `unit`; `value` is what is to be at least, or at most, `reach`."""

    work: str
    measured: float
    beside: str
    value: float
    reach: float | None  # None: nothing is said
    at_least: bool = False
    unit: str = "s"

    def cells(self) -> list[str]:
        """As a row of the table."""
        measured = [self.work, f"{self.measured:.2f} {self.unit}", self.beside]
        if self.reach is None:
            return [*measured, "", "", ""]
        reached = self.value >= self.reach if self.at_least else self.value <= self.reach
        sign = "≥" if self.at_least else "≤"
        return [*measured, f"{self.value:.2f}", f"{sign} {self.reach:g}", "yes" if reached else "no"]


class Reach:
    """One engine, one registry, and the k3dreg between them.  `lines` grows."""

    def __init__(
        self, docker: Docker, socket: str, registry: str, start_registry: Start, k3dreg: list[str], runs: int
    ) -> None:
        self.lines: list[Line] = []
        self._docker = docker
        self._socket = socket
        self._registry = registry
        self._start_registry = start_registry
        self._k3dreg = k3dreg
        self._runs = runs
        driver = json.loads(docker.call("GET", "/info"))["DriverStatus"] or []
        self.containerd_store = ["driver-type", "io.containerd.snapshotter.v1"] in driver

    def start(self, *options: str) -> Start:
        return lambda: servers.k3dreg(self._k3dreg, f"unix://{self._socket}", *options)

    def prepare(self, size: int) -> None:
        """The image, and what a rebuild makes of it, in the registry and in the engine."""
        layers = make_layers(size)
        maker = LayerMaker({})
        maker.file("rebuilt", noise(_SMALL, "rebuilt"))
        small = maker.layer(compress=0)
        with self._start_registry():
            for tag, content in ((TAG, layers), (REBUILT, [*layers, small]), (OTHER, [small])):
                Upstream(self._registry).push_image(REPOSITORY, tag, content, ["/nothing"])
                self.remove(tag)
                self._docker.pull(f"{self._registry}/{REPOSITORY}", tag)

    def remove(self, tag: str) -> None:
        self._docker.remove(f"{self._registry}/{REPOSITORY}:{tag}")

    # -- single measurements ------------------------------------------------------------------------

    def image(self, server: Server, tag: str = TAG) -> Image:
        """The registry is asked under its own name, k3dreg as the mirror of it."""
        return Image(server.host, "" if server.host == self._registry else self._registry, REPOSITORY, tag, False)

    def save(self, tag: str) -> float:
        started, buffer = time.monotonic(), memoryview(bytearray(1 << 20))
        query = {"names": f"{self._registry}/{REPOSITORY}:{tag}"}
        with self._docker.open("GET", "/images/get", query=query) as response:
            while response.readinto(buffer):
                pass
        return time.monotonic() - started

    def cold(self, start: Start) -> tuple[Pulled, Pulled]:
        """One client: the image, which the server never had, and then what it lacks of the one rebuilt of it."""
        with start() as server:
            self.image(server, OTHER).pull(1)
            first = self.image(server).pull(1)
            return first, self.image(server, REBUILT).pull(1, self.image(server).blobs())

    def started(self, start: Start) -> float:
        """Seconds to the first manifest of all after a start: what is made for reading Docker's files is made then."""
        with start() as server:
            return self.image(server, OTHER).pull(1).manifest

    def warm(self, start: Start) -> tuple[float, float]:
        """Bytes a second for eight clients, and seconds of processor time for a GB (10**9 bytes)."""
        with start() as server:
            self.image(server).pull(1)
            before = server.cpu() or 0.0
            pulled = self.image(server).pull(CLIENTS)
            return pulled.size / pulled.seconds, ((server.cpu() or 0.0) - before) / pulled.size * 1e9

    def herd(self, start: Start) -> float:
        """MiB that a server has resident at most while fifty clients pull from it, all at once and cold."""
        with start() as server:
            self.image(server).pull(HERD)
            return (server.memory() or 0.0) * 1e6 / (1 << 20)

    def node(self, start: Start, node: Node) -> float:
        node.clean()
        with start() as server:
            node.use_mirror(server.host)
            seconds = node.pull(f"{self._registry}/{REPOSITORY}:{TAG}")
        node.clean()
        return seconds

    def heads(self, start: Start, askers: int) -> tuple[float, float]:
        with start() as server:
            image = self.image(server)
            image.heads(1, 20)
            return image.heads(askers, 100)

    def inspects(self, askers: int) -> tuple[float, float]:
        """Docker's own answers, on connections that are there: seconds that one takes, and how many a second."""
        path = f"/images/{self._registry}/{REPOSITORY}:{TAG}/json"
        return ask([("unix", self._socket)] * askers, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 100)

    # -- all of it ----------------------------------------------------------------------------------

    def run(self, in_place: tuple[str, ...], node: Node | None, image: str, image_socket: str) -> None:
        """`in_place` are the options by which files are read in place, () if they cannot be; `image` is k3dreg's, which
        is given the engine's socket at `image_socket`, "" if the engine has none.
        """
        ways = {_API: self.start(*_NO_FILES)}
        if in_place:
            ways["files readable"] = self.start(*in_place)
        if image:
            ways["in a container"] = lambda: servers.k3dreg_container(self._docker, image, image_socket)
        saved, saved_again = self.often(lambda: self.save(TAG)), self.often(lambda: self.save(REBUILT))
        registry = self.often(lambda: self.cold(self._start_registry)[0].seconds)
        for way, start in ways.items():
            self.first_fetches(way, start, saved, saved_again, registry)
        self.serving(ways)
        if node is not None:
            there = self.often(lambda: self.node(self._start_registry, node))
            for way, start in ways.items():
                seconds = self.often(lambda start=start: self.node(start, node))  # type: ignore[misc]
                reach = 1.2 if way == _API else 1.05
                told = f"docker-registry {there:.2f} s"
                self.add(f"a node's whole cold pull, {way}", seconds, told, seconds / there, reach)
        for way, start in ways.items():
            self.tags(way, start)

    def first_fetches(self, way: str, start: Start, saved: float, saved_again: float, registry: float) -> None:
        pulls = [self.cold(start) for _ in range(self._runs)]
        seconds = statistics.median(first.seconds for first, _ in pulls)
        manifest = statistics.median(first.manifest for first, _ in pulls)
        again = statistics.median(second.seconds for _, second in pulls)
        told = f"docker save {saved:.2f} s"
        started = self.often(lambda: self.started(start))
        self.add(f"the first manifest after a start, {way}", started, "", started, None)
        self.add(f"manifest, {way}", manifest, "", manifest, None)
        beside = f"docker-registry {registry:.2f} s"
        if self.containerd_store and way != _API:
            self.add(f"first fetch, {way}", seconds, beside, seconds / registry, 1.3)
        else:
            least = 6 if self.containerd_store else 1.5 if way != _API else None
            self.add(f"first fetch, {way}", seconds, told, saved / seconds, least, at_least=True)
        if way == _API:
            told = f"docker save {saved_again:.2f} s"
            self.add(f"rebuilt with a small layer, {way}", again, told, saved_again / again, None)

    def serving(self, ways: dict[str, Start]) -> None:
        there = [self.warm(self._start_registry) for _ in range(self._runs)]
        rate, cost = (statistics.median(column) for column in zip(*there, strict=True))
        for way, start in ways.items():
            here = [self.warm(start) for _ in range(self._runs)]
            own_rate, own_cost = (statistics.median(column) for column in zip(*here, strict=True))
            self.add(
                f"warm, {CLIENTS} clients, {way}",
                own_rate / 1e6,
                f"docker-registry {rate / 1e6:.0f} MB/s",
                own_rate / rate,
                0.5 if way == _API else 1.0,
                at_least=True,
                unit="MB/s",
            )
            told = f"docker-registry {cost:.2f} s/GB"
            self.add(f"their cost, {way}", own_cost, told, own_cost / cost, None, unit="s/GB")
            memory = self.herd(start)
            self.add(f"memory, {HERD} clients, {way}", memory, "", memory, 90, unit="MiB")

    def tags(self, way: str, start: Start) -> None:
        own, _ = self.heads(start, 1)
        inspect, _ = self.inspects(1)
        told = f"docker inspect {inspect * 1000:.1f} ms"
        self.add(f"HEAD of a tag, {way}", own * 1000, told, own * 1000, 30, unit="ms")
        _, rate = self.heads(start, ASKERS)
        there = self.heads(self._start_registry, ASKERS)[1]
        inspects = self.inspects(ASKERS)[1]
        self.add(
            f"HEADs of a tag, {ASKERS} askers, {way}",
            rate,
            f"docker-registry {there:.0f}/s, docker inspect {inspects:.0f}/s",
            rate,
            300,
            at_least=True,
            unit="/s",
        )

    def often(self, measure: Callable[[], float]) -> float:
        return statistics.median(measure() for _ in range(self._runs))

    def add(
        self,
        work: str,
        measured: float,
        beside: str,
        value: float,
        reach: float | None,
        *,
        at_least: bool = False,
        unit: str = "s",
    ) -> None:
        line = Line(work, measured, beside, value, reach, at_least, unit)
        self.lines.append(line)
        print(f"{work}: {measured:.2f} {unit}", file=sys.stderr, flush=True)


def table(lines: list[Line]) -> str:
    """As Markdown."""
    rows = ["| work | k3dreg | beside | that is | reach | |", "|---|--:|---|--:|--:|---|"]
    rows += [f"| {' | '.join(line.cells())} |" for line in lines]
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--docker", default="unix:///var/run/docker.sock", help="the engine [%(default)s]")
    parser.add_argument("--data-root", default="", help="where the engine's data directory is here, if it is")
    parser.add_argument(
        "--node", default="", help="SOCKET:CHROOT of a containerd with its CRI plugin (K3DREG_TEST_NODES)"
    )
    parser.add_argument("--image", default="", help="k3dreg's image in the engine, to be measured as a container, too")
    parser.add_argument("--image-socket", default="", help="the engine's socket on its own host [as --docker]")
    parser.add_argument("--registry", help="as pull.py")
    parser.add_argument("--registry-binary", default="docker-registry", help="as pull.py")
    parser.add_argument("--registry-data", help="as pull.py")
    parser.add_argument("--k3dreg", default="", help="the k3dreg program [the one beside this Python]")
    parser.add_argument("--size", type=int, default=570, help="megabytes of the test image [%(default)s]")
    parser.add_argument("--runs", type=int, default=3, help="of each measurement; the median counts [%(default)s]")
    arguments = parser.parse_args()
    path = arguments.docker.removeprefix("unix://")
    command = shlex.split(arguments.k3dreg) or [str(Path(sys.executable).with_name("k3dreg"))]
    node = None
    if arguments.node:
        socket, _, chroot = arguments.node.rpartition(":")
        node = Node(NodeAddress("node", Path(socket), Path(chroot)))
    with own_registry(arguments) as (registry, start_registry):
        docker = Docker(path)
        reach = Reach(docker, path, registry, start_registry, command, arguments.runs)
        reach.prepare(arguments.size * MB)
        try:
            in_place = ("--docker-root", arguments.data_root) if arguments.data_root else ()
            reach.run(in_place, node, arguments.image, arguments.image_socket or path)
        finally:
            for tag in (TAG, REBUILT, OTHER):
                reach.remove(tag)
    store = "containerd" if reach.containerd_store else "classic"
    what = f"{store} image store, an image of {arguments.size} MB"
    print(f"Docker {docker.version()}, {what}, {time.strftime('%Y-%m-%d')}\n")
    print(table(reach.lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
