"""Containers of k3dreg's own image, for a k3dreg that is a container itself."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from k3dreg.docker.engine import IEngineRequests
from k3dreg.engine_files import pass_directories
from k3dreg.engine_files.helper_container import Helper
from k3dreg.engine_files.helper_objects import ask
from k3dreg.oci.errors import EngineError

# Files that the engine makes for each container lie in a directory of the container's ID on its host, and are mounted
# (proc_pid_mountinfo(5): the fourth field is the root of the mount, the fifth where it is mounted).
_OWN_FILES = re.compile(r"^\S+ \S+ \S+ \S*/containers/([0-9a-f]{64})/\S+ /etc/(?:hostname|hosts|resolv\.conf) ", re.M)


def own_container(mountinfo: str) -> str:
    """The ID of the container whose `/proc/self/mountinfo` it is; "" outside of any."""
    found = _OWN_FILES.search(mountinfo)
    return found[1] if found else ""


class OwnImageHelpers:
    """See `Helpers`.  In k3dreg's own network namespace, where abstract UNIX sockets are known to both."""

    def __init__(self, engine: IEngineRequests, container: str) -> None:
        """`container` is k3dreg's own."""
        self._engine = engine
        self._container = container

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[Helper]:
        """See `Helpers`."""
        yield _helper(await ask(self._engine, "GET", f"/containers/{self._container}/json"))


def _helper(own: Any) -> Helper:
    try:
        host, config, image = own["HostConfig"], own["Config"], own["Image"]
        unlabelled = host["Privileged"] or any("label" in option for option in host.get("SecurityOpt") or ())
        return Helper(
            [sys.executable, "-I", "-S", pass_directories.__file__],
            {"Image": image, "User": "0:0"},
            {
                "NetworkMode": f"container:{own['Id']}",
                # Else the engine makes a volume for each, and fills it.
                "Tmpfs": dict.fromkeys(config.get("Volumes") or (), ""),
                "ReadonlyRootfs": True,
                "SecurityOpt": ["label=disable"] if unlabelled else [],
                "UsernsMode": host.get("UsernsMode") or "",
            },
        )
    except (KeyError, TypeError) as error:
        raise EngineError("the engine's description of k3dreg's container is not understood") from error
