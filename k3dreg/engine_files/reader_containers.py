"""Reader containers: created and never started, they let the engine's archive API read files of the engine's host.

The archive API reads from a container of an empty image, with directories of the engine's host bound read-only,
although the container never runs.  This was observed on Docker 20.10, 26.1 and 28.5, with both stores.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

from k3dreg.docker import containers
from k3dreg.docker.image import EngineInfo
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.engine_files.helper_objects import OWNER, ROLE, image_of_nothing
from k3dreg.engine_files.layout import engine_directories
from k3dreg.oci.errors import FilesUnreachable
from k3dreg.reporting.logger import make_logger

log = make_logger()

# The label with the directories that a container has, as JSON.
DIRECTORIES = "k3dreg.directories"
_IMAGE = "k3dreg-reader"


@frozen
class Reader:
    """A reader container.  It has `directories` of the engine's host as /0, /1 and so on."""

    id: str
    directories: tuple[str, ...]

    def inside(self, path: str) -> str | None:
        """Return the path in the container for `path` of the engine's host; None if the container does not have it."""
        for number, directory in enumerate(self.directories):
            if path == directory or path.startswith(directory + "/"):
                return f"/{number}{path[len(directory) :]}"
        return None


class ReaderContainers:
    """Creates, finds and removes the reader containers of one k3dreg.  Every method raises `EngineError`."""

    def __init__(self, engine: IEngineRequests, owner: str) -> None:
        """`owner`, of letters and digits, tells this k3dreg's containers from those of others on the same engine."""
        self._engine = engine
        self._owner = owner

    async def find(self, info: EngineInfo) -> list[Reader]:
        """Return the usable containers of an earlier run, and remove those with other directories than `info` needs."""
        wanted = {json.dumps(directories) for directories in engine_directories(info)}
        readers = []
        for container in await containers.with_labels(self._engine, {ROLE: "reader", OWNER: self._owner}):
            label = container.labels.get(DIRECTORIES, "")
            if label in wanted and container.state == "created":
                readers.append(Reader(container.id, tuple(json.loads(label))))
            else:
                await self.remove(container.id)
        return readers

    async def make(self, info: EngineInfo, count: int, made: Callable[[Reader], None]) -> None:
        """Create `count` containers, and call `made` with each as soon as it exists.

        Their image is removed before this returns, because a container does not need it.  Raises `FilesUnreachable`
        for an engine whose directories `layout` does not know.
        """
        alternatives = engine_directories(info)
        if not alternatives:
            raise FilesUnreachable("k3dreg does not know how this engine stores its images")
        async with image_of_nothing(self._engine, _IMAGE, "reader", self._owner) as name:
            first = await self._make_one(name, alternatives)
            made(first)
            for _ in range(count - 1):
                made(await self._make_one(name, (first.directories,)))

    async def remove_all(self) -> None:
        """Remove all containers of this k3dreg, of earlier runs, too."""
        for container in await containers.with_labels(self._engine, {ROLE: "reader", OWNER: self._owner}):
            await self.remove(container.id)

    async def remove(self, container: str) -> None:
        """Remove a container.  It is no error if it does not exist, or if its removal is in progress."""
        await containers.remove(self._engine, container)

    async def is_there(self, container: str) -> bool:
        """Return whether the container exists and its removal has not begun."""
        found = await containers.inspect(self._engine, container)
        return found is not None and not found.is_going

    async def _make_one(self, image: str, alternatives: Sequence[tuple[str, ...]]) -> Reader:
        name = f"{_IMAGE}-{self._owner[:8]}-{secrets.token_hex(3)}"

        def describe(directories: tuple[str, ...]) -> dict[str, Any]:
            return {
                "Image": image,
                "Cmd": ["never-started"],
                "Labels": {ROLE: "reader", OWNER: self._owner, DIRECTORIES: json.dumps(directories)},
                "NetworkDisabled": True,
                "HostConfig": {"NetworkMode": "none", "Mounts": containers.bind_mounts(directories)},
            }

        return Reader(*await containers.create(self._engine, name, alternatives, describe))
