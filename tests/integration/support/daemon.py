"""The real daemon as a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.integration.support.rig import EngineAddress

_LISTENING = re.compile(r"listening on (\S+:\d+)")
# The rig's registries listen on this machine's loopback, which is asked for nothing unless it is listed.
REGISTRIES = "* 127.0.0.1:* localhost:*"
# Words in the log that mean a defect, whatever else happened.
_DEFECTS = ("Traceback (most recent call last)", "Unhandled error in Deferred", "was never awaited")


class Daemon:
    """`k3dreg` in the foreground.  Its log is a file; `host` is where it listens, as HOST:PORT."""

    def __init__(
        self,
        engine: EngineAddress,
        state: Path,
        log: Path,
        *options: str,
        before: Sequence[str] = (),
        log_level: str = "debug",
        registries: str = REGISTRIES,
    ) -> None:
        """`before` is to be put before its command; `registries` are those that may be asked.

        With an empty `log_level` or empty `registries`, the settings say it.
        """
        self._command = [
            *before,
            *program(),
            *["--listen", "tcp:0:interface=127.0.0.1", "--docker", engine.url, "--state-dir", str(state)],
            *(["--log-level", log_level] if log_level else []),
            *options,
        ]
        self._log = log
        self._begin = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.host = ""
        # More than it inherits.
        self.environment: dict[str, str] = {"K3DREG_ALLOW_REGISTRY": registries} if registries else {}

    def start(self) -> None:
        """Returns when it listens."""
        self._begin = self._log.stat().st_size if self._log.exists() else 0
        # A directory that has no `k3dreg` in it: what is installed is what runs.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("K3DREG_", "DOCKER_"))}
        environment.update(self.environment)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._log.parent, env=environment
            )
        found = self.wait_for(_LISTENING, seconds=30)
        self.host = found[1]

    def log(self) -> str:
        """What it has said since it was started last."""
        with self._log.open("rb") as log:
            log.seek(self._begin)
            return log.read().decode(errors="replace")

    def wait_for(self, pattern: str | re.Pattern[str], seconds: float = 30, since: int = 0) -> re.Match[str]:
        """Until the log, from that character on, has a line like it.

        A request's line is written when all is over.  A client may have read the last byte a moment before.
        """
        end = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self.log()[since:])
            if found:
                return found
            assert self._process is not None
            assert self._process.poll() is None, f"k3dreg ended with {self._process.returncode}:\n{self.log()}"
            assert time.monotonic() < end, f"no {pattern!r} within {seconds} s:\n{self.log()[-3000:]}"
            time.sleep(0.05)

    def peak_memory(self) -> int:
        """Most bytes resident at one time, since the start or the last `forget_peak`."""
        return self._status("VmHWM")

    def memory(self) -> int:
        """Bytes resident now."""
        return self._status("VmRSS")

    def forget_peak(self) -> None:
        """Begin to measure anew (proc_pid_clear_refs(5), value 5)."""
        assert self._process is not None
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def _status(self, field: str) -> int:
        assert self._process is not None
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {field}")

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send it, and wait for nothing."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """As a service manager does it.  Asserts that it ends by itself and cleanly."""
        if self._process is None:
            return
        code = self._end(signal.SIGTERM)
        # twistd closes everything and then ends by the signal that it was sent.
        assert code in (0, -signal.SIGTERM), f"k3dreg ended with {code}:\n{self.log()[-3000:]}"

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(number)
        try:
            return process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"k3dreg did not end in 30 s:\n{self.log()[-3000:]}") from None

    def check_log(self) -> None:
        """Asserts that nothing in the log is a defect."""
        log = self.log()
        for words in _DEFECTS:
            assert words not in log, log[max(0, log.index(words) - 1000) :][:4000]


def program() -> list[str]:
    """The installed command."""
    beside = Path(sys.executable).with_name("k3dreg")
    found = str(beside) if beside.exists() else shutil.which("k3dreg")
    assert found, "no k3dreg command: install the project first (tox does)"
    return [found]


@contextlib.contextmanager
def running(
    engine: EngineAddress,
    directory: Path,
    *options: str,
    state: Path | None = None,
    before: Sequence[str] = (),
    log_level: str = "debug",
    registries: str = REGISTRIES,
) -> Iterator[Daemon]:
    """A daemon for the time of a `with`.  Its state and its log go into `directory`; the rest is as of `Daemon`."""
    state = state or directory / "state"
    more = {"log_level": log_level, "registries": registries}
    daemon = Daemon(engine, state, directory / "log", *options, before=before, **more)
    daemon.start()
    try:
        yield daemon
        daemon.check_log()
    finally:
        daemon.stop()
