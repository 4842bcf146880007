"""What the parts of `.ci/engines` share: the directory they work in, how they run a command and how they say things."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

RIG = Path(os.environ.get("K3DREG_TEST_RIG") or "/var/tmp/k3dreg-test-rig").resolve()


class Trouble(Exception):
    """Something did not start; the text is for the person at the terminal."""


def run(*command: str | Path, log: Path | None = None, **environment: str) -> None:
    """Run to the end.  Its output goes to `log`, whose tail is shown when it fails."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", **environment}
    words = [str(word) for word in command]
    with log.open("ab") if log else contextlib.nullcontext(subprocess.DEVNULL) as output:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output or None, env=env, check=False
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log else ""
        raise Trouble(f"{' '.join(words)} ended with {done.returncode}\n{tail}")


def say(text: str) -> None:
    print(f".ci/engines: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    RIG.mkdir(parents=True, exist_ok=True)
    with (RIG / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
