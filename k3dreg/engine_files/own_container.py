"""Find the container that k3dreg itself runs in."""

from __future__ import annotations

import re
from pathlib import Path

from attrs import frozen

from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.engine_files.layout import engine_directories

# The engine mounts three files into each container, from a directory on its host that is named by the container's ID
# (proc_pid_mountinfo(5): the fourth field is the root of the mount, the fifth the mount point).
_OWN_FILES = re.compile(r"^\S+ \S+ \S+ \S*/containers/([0-9a-f]{64})/\S+ /etc/(?:hostname|hosts|resolv\.conf) ", re.M)
# CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capabilities(7)) as bits of `CapEff`: one is enough to read all files.
_READS_ALL = 1 << 1 | 1 << 2


@frozen
class OwnContainer:
    """The container of this process.  `reads_all` tells whether this process may read the files of every user."""

    id: str
    reads_all: bool

    def useful_directories(self, info: EngineInfo) -> tuple[tuple[str, ...], ...]:
        """Return the engine's directories that k3dreg can use if a helper container passes them: see `layout`.

        The containerd store's files are readable by every user who can reach them; the classic store's only by root.
        """
        useful = self.reads_all or info.store is ImageStore.CONTAINERD
        return engine_directories(info) if useful else ()


def find_own_container() -> OwnContainer | None:
    """Return the container that this process runs in, None if it runs in none.  Blocks for less than a millisecond."""
    try:
        mountinfo, status = (Path(f"/proc/self/{name}").read_text(errors="replace") for name in ("mountinfo", "status"))
    except OSError:
        return None
    found = container_id(mountinfo)
    return OwnContainer(found, may_read_all(status)) if found else None


def container_id(mountinfo: str) -> str:
    """Return the ID of the container of the process with this `/proc/self/mountinfo`; "" if it runs in none."""
    found = _OWN_FILES.search(mountinfo)
    return found[1] if found else ""


def may_read_all(status: str) -> bool:
    """Return whether the process with this `/proc/self/status` may read the files of every user."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.M)
    return found is not None and bool(int(found[1], 16) & _READS_ALL)
