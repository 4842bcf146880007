"""Push clients of two ages: Debian's, in the chroot that has them, and current ones that `.ci/engines` built.

A name like `crane` is Debian's, `crane-current` the current one.  The same command works with both.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.integration.support import rig
from tests.integration.support.images import PAUSE

_CURRENT = "-current"


def around(tools: Sequence[str], client: str) -> list[str]:
    """Return the words before a shell that finds the client; `tools` are those for Debian's.

    A client that is not there skips the test.
    """
    if client.endswith(_CURRENT):
        directory = rig.program(client.removesuffix(_CURRENT)).parent
        # Their settings and Go's cache are below HOME, which tox does not pass on.
        return ["env", f"PATH={directory}:{os.environ['PATH']}", f"HOME={Path.home()}"]
    if subprocess.run([*tools, "which", client], capture_output=True, check=False).returncode != 0:
        rig.unavailable(f"{client} is not installed:")
    return list(tools)


def run(words: Sequence[str], command: str, stdin: bytes = b"") -> str:
    """Run a shell command after the words that `around` returned, and return what it prints."""
    done = subprocess.run([*words, "sh", "-ec", command], input=stdin, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout.decode()}{done.stderr.decode()}"
    return done.stdout.decode()


def build_with_ko(directory: Path, target: str, base: str, message: str) -> None:
    """Build a Go program that prints `message`, on the image `base`, and push it as `target`, tagged `t`.

    `directory` is for the source.  The same message on the same base makes the same image.
    """
    (directory / "go.mod").write_text("module k3dreg.invalid/app\n\ngo 1.24\n")
    said = f'os.Stdout.WriteString("{message}"); time.Sleep({int(PAUSE * 1000)} * time.Millisecond)'
    source = f'package main\n\nimport (\n"os"\n"time"\n)\n\nfunc main() {{ {said} }}\n'
    (directory / "main.go").write_text(source)
    settings = {"KO_DOCKER_REPO": target, "KO_DEFAULTBASEIMAGE": base, "GOTOOLCHAIN": "local"}
    words = [*around((), "ko-current"), *(f"{name}={value}" for name, value in settings.items())]
    build = "ko build --bare --insecure-registry --platform linux/amd64 --sbom none --tags t ."
    run(words, f"cd {shlex.quote(str(directory))} && {build}")
