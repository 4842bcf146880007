"""Check the GitHub workflows with actionlint.

actionlint is a Go program: it is taken from PATH, or else from K3DREG_TEST_PROGRAMS, which `.ci/engines env` prints.
Where it is in neither, the check is skipped with a message; where CI is `true`, that is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def find() -> str | None:
    """Return the path of actionlint; None where there is none."""
    built = dict(pair.split("=", 1) for pair in os.environ.get("K3DREG_TEST_PROGRAMS", "").split(",") if "=" in pair)
    return shutil.which("actionlint") or built.get("actionlint")


def main() -> int:
    program = find()
    if program is None:
        print("actionlint is not installed: .github/workflows is not checked (.ci/engines build actionlint)")
        return os.environ.get("CI") == "true"
    # shellcheck and pyflakes would be used where they happen to be installed: the same findings everywhere.
    return subprocess.run([program, "-shellcheck=", "-pyflakes="], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
