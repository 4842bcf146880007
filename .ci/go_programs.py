"""Build the programs that Debian does not have from their Go modules.

Each folder of `.ci/programs` is a Go module that pins one program's version in `go.mod` and every source's hash in
`go.sum`; its `tool` lines name the commands.  A build is kept below K3DREG_TEST_RIG in `programs/NAME-VERSION-HASH`,
where HASH covers everything that decides what is built.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from common import RIG, Trouble, lock, say

PINS = Path(__file__).resolve().parent / "programs"
BUILT = RIG / "programs"
# Programs that their makers' build scripts tell the version.  Docker's releases and its module have different ones.
LINKER_FLAGS = {
    "dockerd": "-X github.com/moby/moby/v2/dockerversion.Version=29.9.3",
    "k3d": "-X github.com/k3d-io/k3d/v5/version.Version={version}",
}
# Those of Docker's own static builds that need no library of C.
TAGS = "netgo osusergo exclude_graphdriver_btrfs"
# A package of tests, without a command.
TEST_PACKAGES = {"conformance-1.1": "github.com/opencontainers/distribution-spec/conformance"}


class Program:
    """One folder of `.ci/programs`, with one command or several."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pins = PINS / name
        text = (self.pins / "go.mod").read_text()
        tools = re.findall(r"^(?:tool |\t)([^\s(]+)$", text, re.MULTILINE)
        # The last part of a package's path that is not a major version is the command's name.
        self.commands = [re.sub(r"/v\d+$", "", tool).rpartition("/")[2] for tool in tools] or [f"{name}.test"]
        # The first requirement is the program's own module; the others are what that needs.
        (self.version,) = re.findall(r"^require \S+ (\S+)$", text, re.MULTILINE)
        recipe = [self._command(Path("out")), text, (self.pins / "go.sum").read_text()]
        self.directory = BUILT / f"{name}-{self.version}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]}"

    def _command(self, target: Path) -> list[str]:
        flags = ["-mod=readonly", "-buildvcs=false", "-trimpath", "-tags", TAGS]
        flags += ["-ldflags", f"-s -w {LINKER_FLAGS.get(self.name, '')}".strip().format(version=self.version)]
        if self.name in TEST_PACKAGES:
            return ["go", "test", "-c", *flags, "-o", f"{target}/{self.name}.test", TEST_PACKAGES[self.name]]
        return ["go", "build", *flags, "-o", f"{target}/", "tool"]

    @property
    def built(self) -> bool:
        return self.directory.exists()

    def build(self) -> None:
        """Build it unless that was done before.  Raises `Trouble` with the reason why it cannot be built."""
        with lock(f"program-{self.name}"):
            if self.built:
                return
            started = time.monotonic()
            target = self.directory.with_name(f".{self.directory.name}.part")
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            # One build without a C library runs in every chroot.  No other toolchain is fetched than the one here.
            environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
            command = ["nice", *self._command(target)]
            # From a copy: a checkout may change in the minutes that this takes.
            with tempfile.TemporaryDirectory() as pins:
                for file in ("go.mod", "go.sum"):
                    shutil.copy(self.pins / file, pins)
                done = subprocess.run(
                    command, cwd=pins, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
                )
            if done.returncode:
                lines = done.stderr.decode(errors="replace").strip().splitlines()
                raise Trouble(
                    f"{self.name} was not built: {lines[-1] if lines else f'go ended with {done.returncode}'}"
                )
            target.rename(self.directory)
            say(f"{self.directory.name}: built in {time.monotonic() - started:.0f} s")


def programs() -> dict[str, Program]:
    return {each.name: Program(each.name) for each in sorted(PINS.iterdir())}


def build(names: list[str]) -> set[str]:
    """Build the programs; returns the names of those that are there in the end.

    What cannot be built, for want of Go or of Go's module proxy, is named in one line and left out.  Where CI is `true`
    nothing may be missing, so that raises `Trouble`.
    """
    known = programs()
    there = {name for name in names if known[name].built}
    missing = [name for name in names if name not in there]
    reason = "" if shutil.which("go") else "Go is not installed"
    while missing and not reason:
        try:
            known[missing[0]].build()
            there.add(missing.pop(0))
        except Trouble as trouble:
            reason = str(trouble)
    if missing:
        said = f"not built, and what needs them is left out: {', '.join(missing)}: {reason}"
        if os.environ.get("CI") == "true":
            raise Trouble(said)
        say(said)
    return there
