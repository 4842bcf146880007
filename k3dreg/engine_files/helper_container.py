"""Helper containers, which run a program of k3dreg's image where the engine's files are, and send k3dreg descriptors.

A k3dreg that runs in a container can open only what is mounted into its container.  But another process can send it an
open directory (unix(7), SCM_RIGHTS), which stays open after the mount by which it was opened has ended.  So
`HelperContainer` starts a container of k3dreg's own image with the engine's directories bound read-only.  After some
0.3 seconds the container has sent the directories and ends, and the engine removes it.

A helper container shares k3dreg's network namespace, because abstract UNIX sockets belong to a network namespace.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from k3dreg.docker import containers
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.engine_files import directory_sender
from k3dreg.engine_files.descriptor_receiver import DescriptorReceiver
from k3dreg.engine_files.helper_objects import OWNER, ROLE
from k3dreg.oci.errors import EngineError, FilesUnreachable
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.file_handles import Handle
from k3dreg.streaming.workers import Workers

log = make_logger()

# Seconds after which a started container counts as failed.  It needs some tenths of a second; the machine may be busy.
_MAX_WAIT = 20.0
# Seconds after a container's end in which its last message may still arrive at k3dreg.
_READ_WITHIN = 0.5


@frozen
class HelperImage:
    """An image that has k3dreg, and how a container of it shares k3dreg's network namespace.

    `id` is the image's ID or name, `python` the path of its interpreter, `volumes` are the paths of its volumes.
    `network` and `user_namespace` are modes of the Engine API.  `unlabelled` is whether SELinux does not confine it.
    """

    id: str
    python: str
    network: str
    volumes: tuple[str, ...] = ()
    user_namespace: str = ""
    unlabelled: bool = False


async def own_image(engine: IEngineRequests, own: str) -> HelperImage:
    """Return the image of k3dreg's own container, which has the ID `own`.

    Raises `EngineError`, also when the engine's description has another shape than Docker's.
    """
    described: Any = await containers.description(engine, own)
    try:
        host, volumes = described["HostConfig"], described["Config"].get("Volumes") or ()
        unlabelled = host["Privileged"] or any("label" in option for option in host.get("SecurityOpt") or ())
        return HelperImage(
            described["Image"],
            sys.executable,
            f"container:{described['Id']}",
            tuple(volumes),
            host.get("UsernsMode") or "",
            unlabelled,
        )
    except (KeyError, TypeError) as error:
        raise EngineError("the engine's description of k3dreg's container is not understood") from error


@frozen
class HelperContainers:
    """Runs the helper containers that have the label `role`, and removes them.

    `owner`: see `ReaderContainers`.
    """

    engine: IEngineRequests
    clock: IReactorTime
    role: str
    owner: str

    @asynccontextmanager
    async def running(
        self,
        image: HelperImage,
        receiver: DescriptorReceiver,
        alternatives: Sequence[tuple[str, ...]],
        describe: Callable[[tuple[str, ...]], tuple[Sequence[str], Mapping[str, Any]]],
    ) -> AsyncIterator[tuple[str, tuple[str, ...]]]:
        """Run a helper container for the time of the `async with` block, which begins when `receiver` has descriptors.

        The value is the container's ID, and the first of the `alternatives` that the engine's host has.  `describe`
        turns that into the arguments of the image's interpreter and the members of the Engine API's `HostConfig`.  What
        earlier runs left is removed first.

        The container is removed in the end, also after an error, and when this is cancelled after its creation.  Raises
        `EngineError`, and `FilesUnreachable` when the container sends nothing.
        """
        await self.remove_all()
        container, directories = await containers.create(
            self.engine,
            f"k3dreg-{self.role}-{self.owner[:8]}-{secrets.token_hex(3)}",
            alternatives,
            lambda directories: self._description(image, receiver, *describe(directories)),
        )
        try:
            await containers.start(self.engine, container)
            await self._received(receiver, container)
            yield container, directories
        finally:
            await containers.remove(self.engine, container)

    async def remove_all(self) -> None:
        """Remove these containers, such as those that a killed k3dreg left.  Raises `EngineError`."""
        for container in await containers.with_labels(self.engine, {ROLE: self.role, OWNER: self.owner}):
            await containers.remove(self.engine, container.id)

    async def _received(self, receiver: DescriptorReceiver, container: str) -> None:
        """Return when descriptors have arrived.

        Raises `FilesUnreachable` when the container ends without sending them, or after `_MAX_WAIT` seconds.
        """
        watching = Deferred.fromCoroutine(self._fail_when_over(receiver, container))
        try:
            await receiver.received().addTimeout(_MAX_WAIT, self.clock)
        except TimedOut:
            raise FilesUnreachable(f"the helper container passed nothing within {_MAX_WAIT:.0f} s") from None
        finally:
            watching.cancel()

    async def _fail_when_over(self, receiver: DescriptorReceiver, container: str) -> None:
        """Make the receiver fail soon after the container's end, because no more can arrive."""
        try:
            try:
                await containers.wait(self.engine, container)
            except EngineError as error:
                log.debug("k3dreg cannot wait for its helper container: {error}", error=error)
            await deferLater(self.clock, _READ_WITHIN)
        except CancelledError:
            return
        receiver.fail("the helper container passed nothing")

    def _description(
        self, image: HelperImage, receiver: DescriptorReceiver, arguments: Sequence[str], host: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Describe a container for the engine (Engine API, "Create a container"), without rights but those in `host`.

        The secret goes into the environment, which other users cannot read.
        """
        return {
            "Image": image.id,
            "User": "0:0",
            "Entrypoint": [image.python],
            "Cmd": list(arguments),
            "Env": [f"{directory_sender.SECRET}={receiver.secret}"],
            "Labels": {ROLE: self.role, OWNER: self.owner},
            "HostConfig": {
                "AutoRemove": True,
                "CapDrop": ["ALL"],
                "LogConfig": {"Type": "none"},
                "NetworkMode": image.network,
                "ReadonlyRootfs": True,
                # Without these mounts the engine would make a volume for each of the image's, and fill it.
                "Tmpfs": dict.fromkeys(image.volumes, ""),
                "UsernsMode": image.user_namespace,
                **host,
            },
        }


class HelperContainer:
    """Creates, runs and removes containers without rights that pass the engine's directories."""

    def __init__(self, engine: IEngineRequests, workers: Workers, reactor: Any, owner: str, own: str) -> None:
        """`own` is the ID of the container that k3dreg runs in.

        `reactor`: see `DescriptorReceiver`.  `owner`: see `ReaderContainers`.
        """
        self._engine = engine
        self._workers = workers
        self._reactor = reactor
        self._own = own
        self._containers = HelperContainers(engine, reactor, "helper", owner)

    async def pass_directories(self, alternatives: Sequence[tuple[str, ...]]) -> Mapping[str, Handle]:
        """Return the open directories of the first of the `alternatives` that the engine's host has, by their paths.

        The caller must close them.  Raises as `HelperContainers.running`, and `FilesUnreachable` when the container
        passed no directories that k3dreg can use.
        """
        image = await own_image(self._engine, self._own)
        receiver = DescriptorReceiver(self._reactor)

        def describe(directories: tuple[str, ...]) -> tuple[Sequence[str], Mapping[str, Any]]:
            paths = [f"/{number}" for number in range(len(directories))]
            program = ["-I", "-S", directory_sender.__file__, receiver.name, str(os.geteuid()), *paths]
            return program, {
                "Mounts": containers.bind_mounts(directories),
                "SecurityOpt": ["no-new-privileges", *(["label=disable"] if image.unlabelled else [])],
            }

        try:
            async with self._containers.running(image, receiver, alternatives, describe) as (_, directories):
                if await receiver.received() != len(directories):
                    raise FilesUnreachable(
                        "the helper container passed fewer or more directories than k3dreg asked for"
                    )
                await self._workers.run(_check, receiver.handles)
            return dict(zip(directories, receiver.take(), strict=True))
        finally:
            await receiver.close()


def _check(handles: Sequence[Handle]) -> None:
    """Raise `FilesUnreachable` unless this process can open the directories.  Blocks.

    A security module of the machine (AppArmor, SELinux) may forbid it to.
    """
    try:
        for number, handle in enumerate(handles):
            with handle.use() as descriptor:
                path = f"/proc/self/fd/{descriptor}"
                os.stat(f"{path}/.")
                # Only the first: k3dreg may have the right to enter the others, such as `overlay2`, but not to list
                # them, which it never does.
                if not number:
                    os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise FilesUnreachable(
            f"the helper container passed Docker's directories, but k3dreg cannot open them: {error.strerror}"
        ) from error
