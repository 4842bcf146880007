"""The engine's directories, handed over to a k3dreg that is a container itself.

A container has nothing of the engine's host but what is mounted into it.  But a directory that somebody has opened can
be given to another process (unix(7), SCM_RIGHTS), and stays open when the mount by which it was reached is gone.  So a
second container of k3dreg's own image is started, with the engine's directories bound read-only, in k3dreg's own
network namespace, where abstract UNIX sockets are known to both.  It hands the directories over and ends, after some
0.3 seconds, and the engine removes it.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from k3dreg.files import hand_over
from k3dreg.files.asking import OWNER, ROLE, ask, containers_of, create, mounts, remove
from k3dreg.interfaces import IEngineRequests
from k3dreg.model.errors import EngineError, FilesUnreachable
from k3dreg.streaming.handles import Handle
from k3dreg.streaming.workers import Workers

_ROLE = "handing-over"
# Files that the engine makes for each container lie in a directory of the container's ID on its host, and are mounted
# (proc_pid_mountinfo(5): the fourth field is the root of the mount, the fifth where it is mounted).
_OWN_FILES = re.compile(r"^\S+ \S+ \S+ \S*/containers/([0-9a-f]{64})/\S+ /etc/(?:hostname|hosts|resolv\.conf) ", re.M)
# Seconds in which a container has started and done its work: tenths of one, but the machine may be busy.
_PATIENCE = 20.0
# CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capabilities(7)), as bits of a set of them.
_READS_ALL = 1 << 1 | 1 << 2


def own_container(mountinfo: str) -> str:
    """The ID of the container whose `/proc/self/mountinfo` it is; "" outside of any."""
    found = _OWN_FILES.search(mountinfo)
    return found[1] if found else ""


def may_read_all(status: str) -> bool:
    """Whether the process whose `/proc/self/status` it is may read everybody's files."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.M)
    return found is not None and bool(int(found[1], 16) & _READS_ALL)


class Handing:
    """Has the directories handed over."""

    def __init__(self, engine: IEngineRequests, workers: Workers, owner: str) -> None:
        """`owner` as of `ReaderContainers`."""
        self._engine = engine
        self._workers = workers
        self._owner = owner

    async def take(self, container: str, alternatives: Sequence[tuple[str, ...]]) -> Mapping[str, Handle]:
        """Each directory of the first of the `alternatives` that the engine's host has.

        `container` is k3dreg's own.  Raises `EngineError`, and `FilesUnreachable` when nothing was handed over.
        Cancelling removes the other container, as every end does.
        """
        await self._remove_earlier()
        own = await ask(self._engine, "GET", f"/containers/{container}/json")
        name = f"k3dreg-{secrets.token_hex(16)}"
        with ExitStack() as opened:
            door = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            door.bind(f"\0{name}")
            door.listen()
            made, directories = await create(
                self._engine,
                f"k3dreg-hands-over-{self._owner[:8]}-{secrets.token_hex(3)}",
                alternatives,
                lambda directories: _description(own, self._owner, name, directories),
            )
            try:
                await ask(self._engine, "POST", f"/containers/{made}/start")
                opened.pop_all()  # it is closed by the thread that waits there, and by nobody else
                handles = await self._workers.run(_receive, door, len(directories))
            finally:
                with suppress(OSError):
                    door.shutdown(socket.SHUT_RDWR)  # wakes that thread
                await remove(self._engine, made)
        return dict(zip(directories, handles, strict=True))

    async def _remove_earlier(self) -> None:
        """What a k3dreg that was killed has left."""
        for container in await containers_of(self._engine, _ROLE, self._owner):
            await remove(self._engine, container["Id"])


def _description(own: Any, owner: str, name: str, directories: tuple[str, ...]) -> dict[str, Any]:
    """Of a container like k3dreg's `own`, but that it may do nothing, and writes nothing."""
    try:
        host, config, image = own["HostConfig"], own["Config"], own["Image"]
        unlabelled = host["Privileged"] or any("label" in option for option in host.get("SecurityOpt") or ())
        return {
            "Image": image,
            "Entrypoint": [sys.executable],
            "Cmd": ["-I", "-S", hand_over.__file__, name, *(f"/{number}" for number in range(len(directories)))],
            "User": "0:0",
            "Labels": {ROLE: _ROLE, OWNER: owner},
            "HostConfig": {
                "NetworkMode": f"container:{own['Id']}",
                "Mounts": mounts(directories),
                # Else the engine makes a volume for each, and fills it.
                "Tmpfs": dict.fromkeys(config.get("Volumes") or (), ""),
                "AutoRemove": True,
                "ReadonlyRootfs": True,
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges", *(["label=disable"] if unlabelled else [])],
                "UsernsMode": host.get("UsernsMode") or "",
                "LogConfig": {"Type": "none"},
            },
        }
    except (KeyError, TypeError) as error:
        raise EngineError("the engine's description of k3dreg's container is not understood") from error


def _receive(door: socket.socket, count: int) -> list[Handle]:
    """The descriptors that come with the first connection that root, or this process's own user, makes.

    Waits for it, and closes the door: for a worker thread.  Raises `FilesUnreachable`.
    """
    end = time.monotonic() + _PATIENCE
    descriptors: list[int] = []
    try:
        with door:
            while not descriptors:
                door.settimeout(max(0.001, end - time.monotonic()))
                connection, _ = door.accept()
                with connection:
                    # In the host's own network namespace everybody may connect who has found the name out.
                    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                    if struct.unpack("3i", told)[1] in (0, os.geteuid()):
                        connection.settimeout(_PATIENCE)
                        _, descriptors, _, _ = socket.recv_fds(connection, 1, count)
    except OSError as error:
        raise FilesUnreachable(f"the container that was to hand Docker's directories over did not: {error}") from error
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    handles = [Handle(descriptor) for descriptor in descriptors]
    if len(handles) != count:
        raise FilesUnreachable("the container that was to hand Docker's directories over gave others")
    for handle in handles:
        _check_is_usable(handle)
    return handles


def _check_is_usable(handle: Handle) -> None:
    """A security module of the machine (AppArmor, SELinux) may have other ideas.  Raises `FilesUnreachable`."""
    try:
        with handle.use() as descriptor:
            os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise FilesUnreachable(
            f"Docker's directories were handed over, but are of no use here: {error.strerror}"
        ) from error


def container_to_hand_to() -> str:
    """The ID of the container that this process is in, if it is in one, and may use what is handed to it; else "".

    Blocks, for less than a millisecond.
    """
    try:
        mountinfo, status = (Path(f"/proc/self/{name}").read_text(errors="replace") for name in ("mountinfo", "status"))
    except OSError:  # this is no Linux
        return ""
    return own_container(mountinfo) if may_read_all(status) else ""
