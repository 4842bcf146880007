"""This machine's Debian with changes of its own, and without k3dreg, run by systemd in a container (systemd-nspawn)."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

from tests.integration.support import rig

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Seconds.
_MAX_WAIT = 120
_NOTHING: Mapping[str, str] = {}


@frozen
class Machine:
    """`root` is its root directory, seen from here; `init` the number of its systemd's process here."""

    root: Path
    init: int

    def run(self, command: str, *, status: int | None = 0, environment: Mapping[str, str] = _NOTHING) -> str:
        """What root's shell there prints.  Asserts that it ends with `status`, unless that is None."""
        settings = {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", "SYSTEMD_PAGER": "", **environment}
        inside = ["nsenter", f"--target={self.init}", "--all", "--root", "--wd", "env", "-i"]
        inside += [f"{name}={value}" for name, value in settings.items()]
        done = subprocess.run(
            [*inside, "bash", "-ec", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_MAX_WAIT,
            text=True,
            check=False,
        )
        assert status in (None, done.returncode), f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """A file there, with the directories that it is in."""
        self.run(f"mkdir -p {shlex.quote(str(Path(path).parent))}")
        self.run(f"cat > {shlex.quote(path)} <<'END_OF_FILE'\n{text}\nEND_OF_FILE")

    def log(self, unit: str) -> str:
        """What the unit's processes, and systemd of them, have said."""
        return self.run(f"journalctl --no-pager -o cat _SYSTEMD_UNIT={unit} + UNIT={unit}")

    def show(self, unit: str, name: str) -> str:
        """One of the unit's properties."""
        return self.run(f"systemctl show --value -p {name} {unit}").strip()

    def wait_for(self, unit: str, words: str, times: int = 1) -> None:
        """Until the unit's log has them so many times."""
        end = time.monotonic() + _MAX_WAIT
        while (log := self.log(unit)).count(words) < times:
            assert time.monotonic() < end, f"no {words!r} in:\n{log[-3000:]}"
            time.sleep(0.2)


@contextlib.contextmanager
def booted(directory: Path, binds: Mapping[Path, str]) -> Iterator[Machine]:
    """For the time of a `with`.  It has this machine's network, and none of its services.

    `binds` are files and directories of this machine and where they are there.
    Its root directory is a layer over this machine's, in memory, and gone afterwards.
    """
    if shutil.which("systemd-nspawn") is None:
        rig.unavailable("there is no systemd-nspawn (Debian: systemd-container):")
    with contextlib.ExitStack() as undo:
        root = _layered(directory, undo)
        # Units that this machine has enabled, and its disks.
        for wants in (root / "etc/systemd/system").glob("*.wants"):
            shutil.rmtree(wants)
        (root / "etc/fstab").write_text("")
        # What a k3dreg of this machine's has left.
        for left in ("etc/k3dreg", "opt/k3dreg", "var/lib/k3dreg", "var/lib/private/k3dreg"):
            shutil.rmtree(root / left, ignore_errors=True)
        console = directory / "console"
        command = ["systemd-nspawn", "--boot", f"--directory={root}", "--machine=k3dreg-test"]
        # Nobody else needs to know of it, and there may be no systemd here that could.
        command += ["--register=no", "--keep-unit", "--console=pipe", "--resolv-conf=off", "--timezone=off"]
        command += [f"--bind={here}:{there}" for here, there in binds.items()]
        with console.open("wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        undo.callback(_end, process)
        machine = Machine(root, _wait_until_up(process, console))
        machine.run("systemctl is-system-running --wait", status=None)
        yield machine


def _layered(directory: Path, undo: contextlib.ExitStack) -> Path:
    layers = directory / "layers"
    layers.mkdir(parents=True)
    _mount(["-t", "tmpfs", "-o", "size=2g", "tmpfs", str(layers)], layers, undo)
    root, changes, work = (layers / name for name in ("root", "changes", "work"))
    for each in (root, changes, work):
        each.mkdir()
    _mount(["-t", "overlay", "-o", f"lowerdir=/,upperdir={changes},workdir={work}", "overlay", str(root)], root, undo)
    return root


def _mount(arguments: list[str], where: Path, undo: contextlib.ExitStack) -> None:
    subprocess.run(["mount", *arguments], check=True)
    undo.callback(subprocess.run, ["umount", "--lazy", str(where)], check=True)


def _wait_until_up(process: subprocess.Popen[bytes], console: Path) -> int:
    """The number of the machine's first process."""
    end = time.monotonic() + _MAX_WAIT
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while True:
        assert process.poll() is None, f"the machine did not start:\n{console.read_text(errors='replace')}"
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):
                answers = ["nsenter", f"--target={pid}", "--all", "--root", "--wd", "systemctl", "is-system-running"]
                if subprocess.run(answers, capture_output=True, check=False).stdout.strip() not in (
                    b"",
                    b"offline",
                    b"unknown",
                ):
                    return int(pid)
        assert time.monotonic() < end, f"the machine did not start:\n{console.read_text(errors='replace')[-3000:]}"
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """All at once: nothing that it would write when it shuts down is wanted."""
    # Its first process does not end with systemd-nspawn; with it end all the others.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended by itself
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    process.kill()
    process.wait(_MAX_WAIT)
