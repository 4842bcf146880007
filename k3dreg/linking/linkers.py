"""Find a linker: in this process where it can reach Docker's files, else in a helper container that can.

The helper container has rights on the engine's machine that k3dreg itself may not have (docs/linking.md).  So it runs
only while the option is on.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorTime

from k3dreg.clusters.nodes import Node
from k3dreg.docker import containers, images
from k3dreg.docker.image import EngineInfo
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.engine_files.descriptor_receiver import DescriptorReceiver
from k3dreg.engine_files.helper_container import HelperContainers, HelperImage, own_image
from k3dreg.engine_files.layout import linking_directories
from k3dreg.engine_files.own_container import find_own_container
from k3dreg.linking import linking_helper
from k3dreg.linking.linker import Linker, LinkingResult
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.linking.remote_linker import RemoteLinker
from k3dreg.linking.unpacked_layers import check_engine
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError, EngineUnavailable
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.file_handles import Handle
from k3dreg.streaming.single_flight import SingleFlight
from k3dreg.streaming.workers import Workers

log = make_logger()

# The image of a daemon that runs in no container, as README.md lets users build it.  Its name has no registry but
# Docker Hub's official images, so no client can have Docker pull another image by this name.
IMAGE = HelperImage("k3dreg:latest", "/opt/k3dreg/bin/python", "host", ("/var/lib/k3dreg",))
# What the helper needs: to read and set the attributes of overlayfs (SYS_ADMIN), to give directories the owners, modes
# and times of Docker's (CHOWN, FOWNER, FSETID), to pass all directories and link the files of all users (DAC_OVERRIDE,
# FOWNER), and to reach a node's root directory by `/proc` (SYS_PTRACE).
CAPABILITIES = ("SYS_ADMIN", "SYS_PTRACE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID")
# Seconds between two starts of a helper: at first, and at most.  Each start doubles them, until a helper lives longer.
_AGAIN, _LONGEST = 5.0, 3600.0
# Seconds for which a helper may stop what it does when it is not needed any more.
_MAX_STOP = 3.0

# The engine's ID, and the directories that the helper needs of its host.
_Wanted = tuple[str, tuple[tuple[str, ...], ...]]


class ILinker(Protocol):
    """Links layers into nodes.  All methods block; see `Linker`."""

    def link(
        self,
        info: EngineInfo,
        node: Node,
        repository: str,
        chain: Sequence[Digest],
        proceed: Callable[[], None] = ...,
    ) -> LinkingResult: ...

    def examine(self, info: EngineInfo, node: Node) -> None: ...

    def clean_up(self, node: Node) -> None: ...


class ILinkers(Protocol):
    """Makes a linker when there is need for one."""

    async def get(self, info: EngineInfo) -> ILinker:
        """Return a linker for this engine, the same one as before if it still works.  Raises `CannotLink`."""

    async def close(self) -> None:
        """End the linker, until the next call of `get`, and remove what it has in the engine.  Raises `EngineError`."""

    async def remove_left(self) -> None:
        """Remove from the engine what a killed k3dreg left there.  Call it after `close`.  Raises `EngineError`."""


async def make_linkers(
    engine: IEngineRequests, address: str, workers: Workers, reactor: Any, owner: str = ""
) -> ILinkers:
    """Return what makes linkers for the engine that listens on the UNIX socket `address`, "" for none.

    `reactor`: see `DescriptorReceiver`.  `owner` tells the containers and leases of several k3dregs apart; the default
    is a new one.  The caller must call `close` in the end.
    """
    owner = owner or f"{os.getpid()}x{secrets.token_hex(4)}"
    own = await workers.run(find_own_container)
    if own is None and os.geteuid() == 0:
        return LinkersHere(Linker(address, owner))
    return HelperLinkers(engine, reactor, owner, own.id if own is not None else "", address)


class LinkersHere:
    """Has one linker, in this process."""

    def __init__(self, linker: ILinker) -> None:
        self._linker = linker

    async def get(self, info: EngineInfo) -> ILinker:
        """Return the linker."""
        return self._linker

    async def close(self) -> None:
        """Do nothing, because the linker has nothing open."""

    async def remove_left(self) -> None:
        """Do nothing, because the linker has nothing in the engine."""


class HelperLinkers:
    """Runs a helper container with the program `linking_helper`.

    One that has ended is started again by the next `get`, but not at once: see `_AGAIN`.
    """

    def __init__(self, engine: IEngineRequests, reactor: Any, owner: str, own: str, address: str) -> None:
        """`own` is the ID of the container that k3dreg runs in, "" if it runs in none.

        The others: see `make_linkers`.
        """
        self._engine = engine
        self._reactor = reactor
        self._clock: IReactorTime = reactor
        self._owner = owner
        self._own = own
        self._address = address
        self._containers = HelperContainers(engine, reactor, "linking", owner)
        self._starts: SingleFlight[_Wanted, RemoteLinker] = SingleFlight()
        self._turn = DeferredLock()
        self._linker: RemoteLinker | None = None
        self._made_for: _Wanted | None = None
        self._running = AsyncExitStack()
        self._again_at = 0.0
        self._pause = _AGAIN
        self._complaint = ""

    async def get(self, info: EngineInfo) -> ILinker:
        """Return the linker of the helper that runs, or start one, which takes a second.  Raises as `ILinkers.get`."""
        check_engine(info)
        wanted = info.id, linking_directories(info)
        # Cancelling stops the waiting alone: a start that is cut off could leave a container, see `PassedDirectories`.
        return self._usable(wanted) or await self._starts.join(wanted, lambda: self._start(wanted))

    async def close(self) -> None:
        """End the helper, after waiting for one that is being started."""
        await self._turn.acquire()
        try:
            self._again_at, self._pause = 0.0, _AGAIN
            await self._stop()
        finally:
            self._turn.release()

    async def remove_left(self) -> None:
        """Remove helper containers that another run of this k3dreg has left.  Raises `EngineError`."""
        await self._containers.remove_all()

    def _usable(self, wanted: _Wanted) -> RemoteLinker | None:
        """Return the helper's linker if it is one for this engine and works."""
        if self._linker is None or self._made_for != wanted or not self._linker.is_alive():
            return None
        if self._clock.seconds() > self._again_at:
            self._pause = _AGAIN
        return self._linker

    async def _start(self, wanted: _Wanted) -> RemoteLinker:
        await self._turn.acquire()
        try:
            return self._usable(wanted) or await self._start_anew(wanted)
        finally:
            self._turn.release()

    async def _start_anew(self, wanted: _Wanted) -> RemoteLinker:
        """Start a helper, unless it is too early.  Raises `CannotLink`."""
        now = self._clock.seconds()
        if self._linker is not None:
            self._complaint = "the helper container has ended"
            with contextlib.suppress(EngineError):
                await self._stop()
        if now < self._again_at and self._made_for == wanted:
            raise CannotLink(f"{self._complaint}; k3dreg tries again in {self._again_at - now:.0f} s")
        self._made_for = wanted
        self._again_at = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST)
        try:
            self._linker = await self._started(wanted[1])
        except EngineUnavailable as error:
            self._again_at = now  # the pause is for what Docker refuses
            raise CannotLink(str(error)) from error
        except (EngineError, CannotListenError) as error:
            self._complaint = self._reason(error)
            raise CannotLink(self._complaint) from error
        seconds = self._clock.seconds() - now
        log.info("layers are linked by a helper container, which started in {seconds:.1f} s", seconds=seconds)
        return self._linker

    async def _started(self, alternatives: Sequence[tuple[str, ...]]) -> RemoteLinker:
        if not self._own and not self._address:
            raise EngineError("Docker is not on this machine: its address is no UNIX socket")
        if not alternatives:
            raise EngineError("Docker's layers and volumes lie below no common directory but /")
        image = await self._image()
        receiver = DescriptorReceiver(self._reactor)

        def describe(directories: tuple[str, ...]) -> tuple[Sequence[str], Mapping[str, Any]]:
            program = ["-I", "-m", linking_helper.__name__, receiver.name, str(os.geteuid()), self._owner]
            return program, _rights(directories)

        try:
            running = self._containers.running(image, receiver, alternatives, describe)
            container, _ = await self._running.enter_async_context(running)
            self._running.push_async_callback(self._wait_for_end, container)
            linker = RemoteLinker([_taken(handle) for handle in receiver.take()])
            self._running.callback(linker.close)
        finally:
            await receiver.close()
        return linker

    async def _image(self) -> HelperImage:
        if not self._own:
            if not await images.listed(self._engine, reference=IMAGE.id):
                raise EngineError(f"Docker has no image {IMAGE.id}: docker build -t k3dreg . makes it")
            return IMAGE
        if await containers.inspect(self._engine, self._own) is None:
            raise EngineError("Docker does not know k3dreg's container, and so is on another machine")
        return await own_image(self._engine, self._own)

    async def _stop(self) -> None:
        """End the helper, which first removes what it has not completed.  Raises `EngineError`."""
        self._linker = None
        running, self._running = self._running, AsyncExitStack()
        await running.aclose()

    async def _wait_for_end(self, container: str) -> None:
        """Wait at most `_MAX_STOP` seconds until the helper, whose connections are closed, has ended."""
        with contextlib.suppress(EngineError, TimedOut):
            waiting = Deferred.fromCoroutine(containers.wait(self._engine, container))
            await waiting.addTimeout(_MAX_STOP, self._clock)

    def _reason(self, error: Exception) -> str:
        reason = f"no helper container runs: {error}"
        return reason if self._own else f"k3dreg does not run as root, and {reason}"


def _taken(handle: Handle) -> socket.socket:
    """Return the socket whose descriptor a helper has sent."""
    with handle.use() as descriptor:
        taken = socket.socket(fileno=os.dup(descriptor))
    handle.close()
    return taken


def _rights(directories: tuple[str, ...]) -> Mapping[str, Any]:
    """Return what a container needs to link layers, as members of the Engine API's `HostConfig`.

    Docker's profile of AppArmor denies access to processes that it does not confine, such as a node's, and SELinux
    denies a confined container the engine's files.
    """
    common, *sockets = directories
    return {
        "CapAdd": list(CAPABILITIES),
        "Mounts": [
            containers.bind_mount(common, f"{linking_helper.ROOT}{common}", read_only=False),
            *(containers.bind_mount(each, f"{linking_helper.ROOT}{each}") for each in sockets),
        ],
        "PidMode": "host",
        "SecurityOpt": ["no-new-privileges", "label=disable", "apparmor=unconfined"],
    }
