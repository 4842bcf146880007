"""The helper container, which passes the engine's directories to a k3dreg that runs in a container of this engine.

Such a k3dreg can open only what is mounted into its container.  But another process can send it an open directory
(unix(7), SCM_RIGHTS), which stays open after the mount by which it was opened has ended.

So k3dreg starts a container of its own image with the engine's directories bound read-only.  It shares k3dreg's network
namespace, because abstract UNIX sockets belong to a network namespace.  After some 0.3 seconds the container has sent
the directories and ends, and the engine removes it.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from k3dreg.docker import containers
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.engine_files import directory_sender
from k3dreg.engine_files.directory_receiver import DirectoryReceiver
from k3dreg.engine_files.helper_objects import OWNER, ROLE
from k3dreg.oci.errors import EngineError, FilesUnreachable
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.file_handles import Handle
from k3dreg.streaming.workers import Workers

log = make_logger()

_ROLE = "helper"
# Seconds after which a started container counts as failed.  It needs some tenths of a second; the machine may be busy.
_MAX_WAIT = 20.0
# Seconds after a container's end in which its last message may still arrive at k3dreg.
_READ_WITHIN = 0.5


class HelperContainer:
    """Creates, runs and removes helper containers."""

    def __init__(self, engine: IEngineRequests, workers: Workers, reactor: Any, owner: str, own: str) -> None:
        """`own` is the ID of the container that k3dreg runs in.

        `reactor`: see `DirectoryReceiver`.  `owner`: see `ReaderContainers`.
        """
        self._engine = engine
        self._workers = workers
        self._reactor = reactor
        self._clock: IReactorTime = reactor
        self._owner = owner
        self._own = own

    async def pass_directories(self, alternatives: Sequence[tuple[str, ...]]) -> Mapping[str, Handle]:
        """Return the open directories of the first of the `alternatives` that the engine's host has, by their paths.

        The caller must close them.  The container is removed in the end, also after an error, and when this is
        cancelled after its creation.  Raises `EngineError`, and `FilesUnreachable` when the container passed no
        directories that k3dreg can use.
        """
        await self._remove_earlier()
        own = await containers.description(self._engine, self._own)
        receiver = DirectoryReceiver(self._reactor)
        try:
            container, directories = await containers.create(
                self._engine,
                f"k3dreg-helper-{self._owner[:8]}-{secrets.token_hex(3)}",
                alternatives,
                lambda directories: self._description(own, receiver, directories),
            )
            try:
                await containers.start(self._engine, container)
                if await self._received(receiver, container) != len(directories):
                    raise FilesUnreachable(
                        "the helper container passed fewer or more directories than k3dreg asked for"
                    )
                await self._workers.run(receiver.check)
            finally:
                await containers.remove(self._engine, container)
            return dict(zip(directories, receiver.take(), strict=True))
        finally:
            await receiver.close()

    async def _received(self, receiver: DirectoryReceiver, container: str) -> int:
        """Return the number of directories that have arrived.

        Raises `FilesUnreachable` when the container ends without sending them, or after `_MAX_WAIT` seconds.
        """
        watching = Deferred.fromCoroutine(self._fail_when_over(receiver, container))
        try:
            return await receiver.received().addTimeout(_MAX_WAIT, self._clock)
        except TimedOut:
            raise FilesUnreachable(f"the helper container passed no directories within {_MAX_WAIT:.0f} s") from None
        finally:
            watching.cancel()

    async def _fail_when_over(self, receiver: DirectoryReceiver, container: str) -> None:
        """Make the receiver fail soon after the container's end, because no more can arrive."""
        try:
            try:
                await containers.wait(self._engine, container)
            except EngineError as error:
                log.debug("k3dreg cannot wait for its helper container: {error}", error=error)
            await deferLater(self._clock, _READ_WITHIN)
        except CancelledError:
            return
        receiver.fail("the helper container passed no directories")

    async def _remove_earlier(self) -> None:
        """Remove helper containers that an earlier run of this k3dreg left because it was killed."""
        for container in await containers.with_labels(self._engine, {ROLE: _ROLE, OWNER: self._owner}):
            await containers.remove(self._engine, container.id)

    def _description(self, own: Any, receiver: DirectoryReceiver, directories: tuple[str, ...]) -> dict[str, Any]:
        """Describe a container without rights for the engine (Engine API, "Create a container").

        `own` is the engine's description of k3dreg's own container.  The secret goes into the environment, which other
        users cannot read.  Raises `EngineError` when `own` has another shape than Docker's.
        """
        paths = [f"/{number}" for number in range(len(directories))]
        try:
            host, volumes = own["HostConfig"], own["Config"].get("Volumes") or ()
            unlabelled = host["Privileged"] or any("label" in option for option in host.get("SecurityOpt") or ())
            return {
                "Image": own["Image"],
                "User": "0:0",
                "Entrypoint": [sys.executable],
                "Cmd": ["-I", "-S", directory_sender.__file__, receiver.name, str(os.geteuid()), *paths],
                "Env": [f"{directory_sender.SECRET}={receiver.secret}"],
                "Labels": {ROLE: _ROLE, OWNER: self._owner},
                "HostConfig": {
                    "AutoRemove": True,
                    "CapDrop": ["ALL"],
                    "LogConfig": {"Type": "none"},
                    "Mounts": containers.bind_mounts(directories),
                    "NetworkMode": f"container:{own['Id']}",
                    "ReadonlyRootfs": True,
                    "SecurityOpt": ["no-new-privileges", *(["label=disable"] if unlabelled else [])],
                    # Without these mounts the engine would make a volume for each of the image's, and fill it.
                    "Tmpfs": dict.fromkeys(volumes, ""),
                    "UsernsMode": host.get("UsernsMode") or "",
                },
            }
        except (KeyError, TypeError) as error:
            raise EngineError("the engine's description of k3dreg's container is not understood") from error
