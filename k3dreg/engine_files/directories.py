"""Where the engine's directories are for this process."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from attrs import frozen

from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.streaming.file_handles import Handle


@frozen
class EngineDirectory:
    """A path on this machine; or one below a directory that is open, and may be reachable in no other way."""

    path: str
    below: Handle | None = None

    @contextmanager
    def use(self) -> Iterator[str]:
        """What to open, for as long as the `with` lasts.  For worker threads."""
        if self.below is None:
            yield self.path
            return
        with self.below.use() as descriptor:
            # Not relative to the descriptor (`dir_fd`): an absolute path goes wherever a path goes.
            yield f"/proc/self/fd/{descriptor}/{self.path}"


class EngineDirectories(Protocol):
    """Says where a path of the engine's host is."""

    async def locate(self, path: str) -> EngineDirectory:
        """Raises `FileAbsent`, `FilesUnreachable` or `EngineUnavailable`."""
        ...


class SameDirectories:
    """Where the engine says, which is right if it runs on this machine and k3dreg outside of any container; or where
    `docker_root` and `content_store` say that the engine's own directories are here.

    Whatever else is found there does no harm: contents are named by their digests.
    """

    def __init__(self, engine: IEngineRequests, *, docker_root: str = "", content_store: str = "") -> None:
        self._engine = engine
        self._docker_root = docker_root
        self._content_store = content_store

    async def locate(self, path: str) -> EngineDirectory:
        """See `EngineDirectories`."""
        if self._content_store:
            _, found, rest = path.partition("/io.containerd.content.v1.content/")
            if found:
                return EngineDirectory(posixpath.join(self._content_store, rest))
        if self._docker_root:
            root = (await self._engine.info()).root_dir.rstrip("/") + "/"
            if path.startswith(root):
                return EngineDirectory(posixpath.join(self._docker_root, path[len(root) :]))
        return EngineDirectory(path)
