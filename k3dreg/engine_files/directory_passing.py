"""The engine's directories, handed over to a k3dreg that is a container of this engine.

Such a k3dreg has nothing of the engine's host but what is mounted into it.  But a directory that another process has
opened can be given to it (unix(7), SCM_RIGHTS), and stays open when the mount by which it was reached is gone.  So a
container of k3dreg's own image is started, with the engine's directories bound read-only, in k3dreg's own network
namespace, where abstract UNIX sockets are known to both.  It hands the directories over and ends, after some 0.3
seconds, and the engine removes it.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred

from k3dreg.docker.engine import IEngineRequests
from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.engine_files.helper_objects import OWNER, ROLE, ask, containers_of, create, mounts, remove
from k3dreg.engine_files.helper_own_image import Helper, make_helper, own_container
from k3dreg.engine_files.layout import engine_directories
from k3dreg.engine_files.pass_directories import HALF, SECRET
from k3dreg.oci.errors import EngineError, FilesUnreachable
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.file_handles import Handle
from k3dreg.streaming.workers import Workers

log = make_logger()

_ROLE = "handing-over"
# Seconds in which a container has started and done its work: tenths of one, but the machine may be busy.
_PATIENCE = 20.0
# Seconds in which a process that has connected says what it has to.  The next one waits meanwhile.
_ANSWER = 2.0
# CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (capabilities(7)), as bits of a set of them.
_READS_ALL = 1 << 1 | 1 << 2


@frozen
class Situation:
    """In which `container` this process is (its ID; "": in none), and whether it may read everybody's files."""

    container: str
    reads_all: bool

    def directories(self, info: EngineInfo) -> tuple[tuple[str, ...], ...]:
        """See `engine_directories`: those that would be of use.

        The containerd store's are everybody's, but for the way there; of the classic store's, root has made sure.
        """
        return engine_directories(info) if self.reads_all or info.store is ImageStore.CONTAINERD else ()


def look_around() -> Situation:
    """Blocks, for less than a millisecond."""
    try:
        mountinfo, status = (Path(f"/proc/self/{name}").read_text(errors="replace") for name in ("mountinfo", "status"))
    except OSError:
        return Situation("", False)
    return Situation(own_container(mountinfo), may_read_all(status))


def may_read_all(status: str) -> bool:
    """Whether the process whose `/proc/self/status` it is may read everybody's files."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.M)
    return found is not None and bool(int(found[1], 16) & _READS_ALL)


class DirectoryPassing:
    """Has the directories handed over."""

    def __init__(self, engine: IEngineRequests, workers: Workers, owner: str, container: str) -> None:
        """`owner` as of `ReaderContainers`; `container` is the ID of k3dreg's own."""
        self._engine = engine
        self._workers = workers
        self._owner = owner
        self._container = container

    async def take(self, alternatives: Sequence[tuple[str, ...]]) -> Mapping[str, Handle]:
        """Each directory of the first of the `alternatives` that the engine's host has.

        Raises `EngineError`, and `FilesUnreachable` when nothing was handed over.  Cancelling removes the container,
        as every end does.
        """
        await self._remove_earlier()
        name, secret = f"k3dreg-{secrets.token_hex(16)}", secrets.token_hex(HALF)
        helper = make_helper(await ask(self._engine, "GET", f"/containers/{self._container}/json"))
        with ExitStack() as opened:
            door = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            door.bind(f"\0{name}")
            door.listen()
            made, directories = await create(
                self._engine,
                f"k3dreg-hands-over-{self._owner[:8]}-{secrets.token_hex(3)}",
                alternatives,
                lambda directories: _description(helper, self._owner, name, secret, directories),
            )
            watching: Deferred[None] | None = None
            handles: Sequence[Handle] = ()
            try:
                await ask(self._engine, "POST", f"/containers/{made}/start")
                watching = Deferred.fromCoroutine(self._knock_when_over(made, name, secret))
                opened.pop_all()  # it is closed by the thread that waits there, and by nobody else
                handles = await self._workers.acquire(_receive, _close_all, door, secret, len(directories))
            finally:
                if watching is not None:
                    watching.cancel()
                _knock(name, secret)
                try:
                    await remove(self._engine, made)
                except BaseException:
                    _close_all(handles)
                    raise
        return dict(zip(directories, handles, strict=True))

    async def _knock_when_over(self, container: str, name: str, secret: str) -> None:
        """When it has ended, whatever it was to hand over has come, or never will."""
        try:
            await ask(self._engine, "POST", f"/containers/{container}/wait")
        except CancelledError:
            return
        except EngineError as error:
            log.debug("k3dreg cannot wait for its helper container: {error}", error=error)
        _knock(name, secret)

    async def _remove_earlier(self) -> None:
        """What a k3dreg that was killed has left."""
        for container in await containers_of(self._engine, _ROLE, self._owner):
            await remove(self._engine, container["Id"])


def _description(helper: Helper, owner: str, name: str, secret: str, directories: tuple[str, ...]) -> dict[str, Any]:
    """Describe a container that may do nothing.  What is in its environment, only its own user and root can read."""
    host = {
        **helper.host,
        "Mounts": mounts(directories),
        "AutoRemove": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", *helper.host["SecurityOpt"]],
        "LogConfig": {"Type": "none"},
    }
    command = [*helper.command, name, str(os.geteuid()), *(f"/{number}" for number in range(len(directories)))]
    labels = {ROLE: _ROLE, OWNER: owner}
    called = {"Entrypoint": command[:1], "Cmd": command[1:], "Env": [f"{SECRET}={secret}"]}
    return {**helper.container, **called, "Labels": labels, "HostConfig": host}


def _receive(door: socket.socket, secret: str, count: int) -> list[Handle]:
    """Return the descriptors that come with the first connection whose process knows the secret.

    Waits for it, and closes the door: for a worker thread.  Raises `FilesUnreachable`.
    """
    end = time.monotonic() + _PATIENCE
    descriptors: list[int] | None = None
    try:
        with door:
            while descriptors is None:
                door.settimeout(max(0.001, end - time.monotonic()))
                connection, _ = door.accept()
                with connection:
                    descriptors = _received(connection, secret, count)
    except OSError as error:
        raise FilesUnreachable(f"the helper container did not pass Docker's directories: {error}") from error
    if not descriptors:
        raise FilesUnreachable("the helper container passed no directories")
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    handles = [Handle(descriptor) for descriptor in descriptors]
    try:
        _check_are_usable(handles, count)
    except FilesUnreachable:
        _close_all(handles)
        raise
    return handles


def _close_all(handles: Iterable[Handle]) -> None:
    for handle in handles:
        handle.close()


def _received(connection: socket.socket, secret: str, count: int) -> list[int] | None:
    """Return what a process hands over, maybe nothing; None if it is not the container.

    In the host's own network namespace every process may connect that has found the name out: the user is looked at
    first, and nothing of the secret is shown to a process that does not know its own half.
    """
    try:
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", told)[1] not in (0, os.geteuid()):
            return None
        connection.settimeout(_ANSWER)
        shown = b""
        while len(shown) < HALF and (more := connection.recv(HALF - len(shown))):
            shown += more
        if not hmac.compare_digest(shown, secret[:HALF].encode("ascii")):
            return None
    except OSError:
        return None
    try:
        connection.sendall(secret[HALF:].encode("ascii"))
        return socket.recv_fds(connection, 1, count)[1]
    except OSError:
        return []


def _knock(name: str, secret: str) -> None:
    """End a `_receive` that waits there, or will, by giving it nothing.

    A socket that is shut down does not: Python goes on asking it for connections until its timeout.
    """
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
        knocking.setblocking(False)
        knocking.connect(f"\0{name}")
        knocking.send(secret[:HALF].encode("ascii"))


def _check_are_usable(handles: Sequence[Handle], count: int) -> None:
    """Raise `FilesUnreachable` unless these are `count` directories that can be used.

    A security module of the machine (AppArmor, SELinux) may forbid that.
    """
    if len(handles) != count:
        raise FilesUnreachable("the helper container passed fewer or more directories than k3dreg asked for")
    try:
        for number, handle in enumerate(handles):
            with handle.use() as descriptor:
                path = f"/proc/self/fd/{descriptor}"
                os.stat(f"{path}/.")
                if not number:  # others may be passed through by everybody, but listed by root alone
                    os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise FilesUnreachable(
            f"the helper container passed Docker's directories, but k3dreg cannot open them: {error.strerror}"
        ) from error
