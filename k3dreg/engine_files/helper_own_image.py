"""Containers of k3dreg's own image, for a k3dreg that is a container itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from k3dreg.engine_files import pass_directories
from k3dreg.oci.errors import EngineError

# Files that the engine makes for each container lie in a directory of the container's ID on its host, and are mounted
# (proc_pid_mountinfo(5): the fourth field is the root of the mount, the fifth where it is mounted).
_OWN_FILES = re.compile(r"^\S+ \S+ \S+ \S*/containers/([0-9a-f]{64})/\S+ /etc/(?:hostname|hosts|resolv\.conf) ", re.M)


def own_container(mountinfo: str) -> str:
    """The ID of the container whose `/proc/self/mountinfo` it is; "" outside of any."""
    found = _OWN_FILES.search(mountinfo)
    return found[1] if found else ""


@frozen
class Helper:
    """`command` runs `pass_directories`, without its arguments; `container` and `host` are parts of the description of
    a container, and of its `HostConfig` (Engine API, "Create a container").
    """

    command: Sequence[str]
    container: Mapping[str, Any]
    host: Mapping[str, Any]


def make_helper(own: Any) -> Helper:
    """Describe a container of the image of k3dreg's `own`, of which this is the engine's description.

    It is in k3dreg's network namespace, where abstract UNIX sockets are known to both.  Raises `EngineError`.
    """
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
