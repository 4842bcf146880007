"""The container that k3dreg itself runs in."""

from __future__ import annotations

import re
from pathlib import Path

from attrs import frozen

from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.engine_files.layout import engine_directories

# Files that the engine makes for each container lie in a directory of the container's ID on its host, and are mounted
# (proc_pid_mountinfo(5): the fourth field is the root of the mount, the fifth where it is mounted).
_OWN_FILES = re.compile(r"^\S+ \S+ \S+ \S*/containers/([0-9a-f]{64})/\S+ /etc/(?:hostname|hosts|resolv\.conf) ", re.M)
# CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capabilities(7)), as bits of a set of them.
_READS_ALL = 1 << 1 | 1 << 2


@frozen
class OwnContainer:
    """A container by its ID.  `reads_all` tells whether k3dreg may read every user's files in it."""

    id: str
    reads_all: bool

    def useful_directories(self, info: EngineInfo) -> tuple[tuple[str, ...], ...]:
        """Return the engine's directories that k3dreg can use once they were passed to it: see `layout`.

        Every user may read the containerd store's files, once the way there is open.  The classic store's are root's.
        """
        useful = self.reads_all or info.store is ImageStore.CONTAINERD
        return engine_directories(info) if useful else ()


def find_own_container() -> OwnContainer | None:
    """Return the container that this process runs in; None outside of any.  Blocks for less than a millisecond."""
    try:
        mountinfo, status = (Path(f"/proc/self/{name}").read_text(errors="replace") for name in ("mountinfo", "status"))
    except OSError:
        return None
    found = container_id(mountinfo)
    return OwnContainer(found, may_read_all(status)) if found else None


def container_id(mountinfo: str) -> str:
    """Return the ID of the container whose `/proc/self/mountinfo` it is; "" outside of any."""
    found = _OWN_FILES.search(mountinfo)
    return found[1] if found else ""


def may_read_all(status: str) -> bool:
    """Tell whether the process whose `/proc/self/status` it is may read every user's files."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.M)
    return found is not None and bool(int(found[1], 16) & _READS_ALL)
