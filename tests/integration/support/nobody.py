"""Runs a command as somebody else, who may run this Python wherever it is.

    python nobody.py UID GID DIRECTORY... -- COMMAND...

Directories may be where only root passes, as root's home.  So it is done in a mount namespace of its own, in which what
keeps others out is covered by an empty directory, with the DIRECTORYs below it in their places.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def words(uid: int, gid: int, *directories: str) -> list[str]:
    """What to put before a command, so that it runs so.  This Python is among the directories."""
    own = [sys.prefix, sys.base_prefix]
    # unshare(1) makes a namespace from which no mount gets out.
    return ["unshare", "--mount", sys.executable, __file__, str(uid), str(gid), *own, *directories, "--"]


def _closed_above(directory: Path) -> Path | None:
    """The outermost directory above it that others may not pass."""
    return next((above for above in reversed(directory.parents) if not above.stat().st_mode & 1), None)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main(uid: str, gid: str, *rest: str) -> None:
    """Does not return.  Raises `OSError` and `CalledProcessError`."""
    directories, command = [Path(path) for path in rest[: rest.index("--")]], rest[rest.index("--") + 1 :]
    aside = Path("/mnt")
    _mount("-t", "tmpfs", "-o", "mode=700", "tmpfs", str(aside))
    closed: dict[Path, list[tuple[Path, Path]]] = {}
    for number, directory in enumerate(dict.fromkeys(directories)):
        above = _closed_above(directory)
        if above is not None:
            kept = aside / str(number)
            kept.mkdir()
            _mount("--bind", str(directory), str(kept))
            closed.setdefault(above, []).append((directory, kept))
    for above, below in closed.items():
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(above))
        for directory, kept in below:
            directory.mkdir(parents=True, exist_ok=True)
            _mount("--bind", str(kept), str(directory))
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
