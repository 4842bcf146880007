"""How fast an image leaves Docker through k3dreg, beside `docker save` and Debian's docker-registry.

    python bench/pull.py --docker unix:///var/run/docker.sock

README.md beside this file says what is measured and what the columns mean.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from attrs import frozen

sys.path.append(str(Path(__file__).resolve().parent.parent))
from bench import servers
from bench.client import Image, Pulled
from bench.servers import Server
from tests.integration.support.docker_api import Docker
from tests.integration.support.images import MB, LayerMaker, noise, text
from tests.integration.support.upstream import Layer, Upstream

REPOSITORY, TAG = "k3dreg-bench/pull", "1"


@frozen
class Row:
    """One measurement: `size` bytes in `seconds`; `cpu` and `engine_cpu` in seconds, None where unknown."""

    what: str
    state: str
    clients: int
    size: int
    seconds: float
    cpu: float | None
    engine_cpu: float | None
    memory: float | None


def make_layers(size: int) -> list[Layer]:
    """Six layers, `size` bytes in all as they lie in the registry; nine tenths of it do not compress."""
    layers = []
    for number in range(6):
        maker = LayerMaker({})
        maker.file(f"layer{number}/noise", noise(size // 6 * 9 // 10, f"bench {number}"))
        maker.file(f"layer{number}/text", text(size // 60, f"bench {number}"))
        layers.append(maker.layer(compress=0))
    return layers


class Bench:
    """Measures against one engine and one registry.  `rows` grows."""

    def __init__(self, docker: Docker, engine: tuple[int, ...], registry: str, check: bool) -> None:
        self.rows: list[Row] = []
        self._docker = docker
        self._engine = engine
        self._registry = registry
        self._check = check

    def prepare(self, size: int) -> None:
        """The image in the registry, and in the engine as pulled from there."""
        Upstream(self._registry).push_image(REPOSITORY, TAG, make_layers(size), ["/nothing"])
        self._docker.remove(f"{self._registry}/{REPOSITORY}:{TAG}")
        self._docker.pull(f"{self._registry}/{REPOSITORY}", TAG)

    def save(self) -> None:
        """`docker save` to nowhere."""

        def export() -> Pulled:
            started, size, buffer = time.monotonic(), 0, memoryview(bytearray(1 << 20))
            query = {"names": f"{self._registry}/{REPOSITORY}:{TAG}"}
            with self._docker.open("GET", "/images/get", query=query) as response:
                while read := response.readinto(buffer):
                    size += read
            return Pulled(size, time.monotonic() - started)

        self._measure("docker save", "", 1, None, export)

    def pull(self, what: str, state: str, server: Server, clients: int) -> None:
        """The registry is asked under its own name, k3dreg as the mirror of it."""
        namespace = "" if server.host == self._registry else self._registry
        image = Image(server.host, namespace, REPOSITORY, TAG, self._check)
        self._measure(what, state, clients, server, lambda: image.pull(clients))

    def _measure(self, what: str, state: str, clients: int, server: Server | None, run: Callable[[], Pulled]) -> None:
        before, engine_before = server.cpu() if server else None, servers.cpu_seconds(self._engine)
        pulled = run()
        after, engine_after = server.cpu() if server else None, servers.cpu_seconds(self._engine)
        row = Row(
            what=what,
            state=state,
            clients=clients,
            size=pulled.size,
            seconds=pulled.seconds,
            cpu=None if before is None or after is None else after - before,
            engine_cpu=None if engine_before is None or engine_after is None else engine_after - engine_before,
            memory=server.memory() if server else None,
        )
        self.rows.append(row)
        print(f"{what} {state}, {clients} client(s): {row.seconds:.2f} s", file=sys.stderr, flush=True)


def table(rows: list[Row]) -> str:
    """As Markdown.  The ratios are of seconds: below 1 is faster than what it is compared with."""
    saved = next(row.seconds for row in rows if row.what == "docker save")
    registry = {(row.state, row.clients): row.seconds for row in rows if row.what == "docker-registry"}
    lines = [
        "| | state | clients | s | MB/s | CPU s/GB | Docker's CPU s/GB | peak MB | ÷ docker-registry | ÷ docker save |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        gigabytes = row.size / 1e9
        same = registry.get((row.state, row.clients))
        cells = [
            row.what,
            row.state,
            str(row.clients),
            f"{row.seconds:.2f}",
            f"{row.size / 1e6 / row.seconds:.0f}",
            "" if row.cpu is None else f"{row.cpu / gigabytes:.2f}",
            "" if row.engine_cpu is None else f"{row.engine_cpu / gigabytes:.2f}",
            "" if row.memory is None else f"{row.memory:.0f}",
            "" if same is None else f"{row.seconds / same:.2f}",
            f"{row.seconds / saved:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@contextlib.contextmanager
def own_registry(
    arguments: argparse.Namespace,
) -> Iterator[tuple[str, Callable[[], contextlib.AbstractContextManager[Server]]]]:
    """(HOST:PORT, how to start the registry there), or the one that is given."""
    if arguments.registry:
        host = urlsplit(arguments.registry).netloc
        yield host, lambda: contextlib.nullcontext(Server(host, servers.listening_process(host)))
        return
    command = shlex.split(arguments.registry_binary)
    if shutil.which(command[0]) is None:
        raise SystemExit(f"no {command[0]}: install docker-registry, or say --registry-binary or --registry")
    address = servers.free_address()
    directory = arguments.registry_data or tempfile.mkdtemp(prefix="k3dreg-bench-registry-")
    try:
        yield address, lambda: servers.docker_registry(command, directory, address)
    finally:
        if not arguments.registry_data:
            shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--docker", default="unix:///var/run/docker.sock", help="the engine [%(default)s]")
    parser.add_argument("--registry", help="http://HOST:PORT of a registry that runs and takes anonymous pushes")
    parser.add_argument(
        "--registry-binary",
        default="docker-registry",
        help="else: the program to start, with words before it if need be",
    )
    parser.add_argument("--registry-data", help="and the directory for its data, as the program sees it")
    parser.add_argument("--k3dreg", default="", help="the k3dreg program [the one beside this Python]")
    parser.add_argument("--size", type=int, default=600, help="megabytes of the test image [%(default)s]")
    parser.add_argument("--clients", type=int, default=8, help="at one time, besides one [%(default)s]")
    parser.add_argument("--check", action="store_true", help="let the clients check digests, which costs them CPU time")
    arguments = parser.parse_args()
    socket = arguments.docker.removeprefix("unix://")
    command = shlex.split(arguments.k3dreg) or [str(Path(sys.executable).with_name("k3dreg"))]
    with own_registry(arguments) as (registry, start_registry):
        docker = Docker(socket)
        bench = Bench(docker, servers.engine_processes(socket), registry, arguments.check)
        with start_registry():
            bench.prepare(arguments.size * MB)
        try:
            bench.save()

            def start_k3dreg() -> contextlib.AbstractContextManager[Server]:
                return servers.k3dreg(command, arguments.docker)

            starts = {"docker-registry": start_registry, "k3dreg": start_k3dreg}
            for what, start in starts.items():
                for clients in (1, arguments.clients):
                    with start() as server:
                        bench.pull(what, "cold", server, clients)
                        bench.pull(what, "warm", server, clients)
        finally:
            docker.remove(f"{registry}/{REPOSITORY}:{TAG}")
    print(f"Docker {docker.version()}, an image of {arguments.size} MB in six layers, {time.strftime('%Y-%m-%d')}\n")
    print(table(bench.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
