"""The servers that are compared, and what they cost."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from attrs import frozen

from tests.integration.support.docker_api import Docker
from tests.integration.support.k3d import container

_TICKS = os.sysconf("SC_CLK_TCK")


@frozen
class Server:
    """Where it listens, as HOST:PORT, and its processes; none where they cannot be seen."""

    host: str
    pids: tuple[int, ...]

    def cpu(self) -> float | None:
        return cpu_seconds(self.pids)

    def memory(self) -> float | None:
        """The most megabytes that it has had resident at one time."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pids[0]}/status").read_text().splitlines() if self.pids else []:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024 / 1e6
        return None


def cpu_seconds(pids: Sequence[int]) -> float | None:
    """CPU time, user and system, that the processes have used.  None when it cannot be known."""
    try:
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    except OSError:
        return None
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / _TICKS if pids else None


def engine_processes(path: str) -> tuple[int, ...]:
    """The engine behind a UNIX socket, and its children: one of them is its containerd."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        engine = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    with contextlib.suppress(OSError):
        threads = list(Path(f"/proc/{engine}/task").iterdir())
        return engine, *(int(pid) for thread in threads for pid in (thread / "children").read_text().split())
    return ()


def listening_process(host: str) -> tuple[int, ...]:
    """The process on this machine that listens on HOST:PORT, if it may be seen."""
    port, found = int(host.rpartition(":")[2]), set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:  # 0A is LISTEN
                found.add(f"socket:[{words[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(file) in found for file in (process / "fd").iterdir()):
                return (int(process.name),)
    return ()


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path, stdin: IO[bytes] | None) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        started = subprocess.Popen(command, stdin=stdin or subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(60)


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end or process.poll() is not None:
            raise SystemExit(f"a server did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


@contextlib.contextmanager
def k3dreg(command: Sequence[str], docker: str, *more: str) -> Iterator[Server]:
    """A k3dreg that knows nothing yet: its state directory is empty.  `more` are options."""
    with tempfile.TemporaryDirectory(prefix="k3dreg-bench-") as directory:
        log = Path(directory) / "log"
        options = [
            "--listen",
            "tcp:0:interface=127.0.0.1",
            "--docker",
            docker,
            "--state-dir",
            f"{directory}/state",
            *more,
        ]
        with _process([*command, *options], log, None) as process:
            found: list[str] = []

            def listens() -> bool:
                found[:] = re.findall(r"listening on (\S+:\d+)", log.read_text(errors="replace"))
                return bool(found)

            _wait(listens, process, log)
            yield Server(found[0], (process.pid,))


@contextlib.contextmanager
def k3dreg_container(docker: Docker, image: str, socket: str) -> Iterator[Server]:
    """One that knows nothing yet, as a container with nothing but the engine's socket, in this machine's network.

    `socket` is a path on the engine's host.
    """
    address = free_address()
    body = {
        "Image": image,
        "Cmd": ["k3dreg", "--listen", f"tcp:{address.partition(':')[2]}:interface=127.0.0.1"],
        "HostConfig": {"Binds": [f"{socket}:/var/run/docker.sock"], "NetworkMode": "host"},
    }
    with container(docker, f"k3dreg-bench-{os.getpid()}", body) as made:
        made.start()
        made.wait_for("passed their directories")
        yield Server(address, (int(made.inspect()["State"]["Pid"]),))


@contextlib.contextmanager
def docker_registry(command: Sequence[str], directory: str, address: str) -> Iterator[Server]:
    """Debian's docker-registry with its data in `directory`, a path as that program sees it."""
    config = (
        "version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\n"
        f'storage: {{filesystem: {{rootdirectory: "{directory}"}}}}\nhttp: {{addr: "{address}", secret: bench}}\n'
    )
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryDirectory() as logs:
        stdin.write(config.encode())
        stdin.seek(0)
        log = Path(logs) / "log"
        with _process([*command, "serve", "/dev/stdin"], log, stdin) as process:

            def answers() -> bool:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(address.split(":")[1]))):
                    return True
                return False

            _wait(answers, process, log)
            yield Server(address, (process.pid,))


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
