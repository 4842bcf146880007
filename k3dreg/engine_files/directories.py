"""Translate paths of the engine's host into paths that this process can open."""

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
    """A path of this machine, or a path relative to the open directory `below`.

    The open directory may have no path that this process could use: see `passed_directories`.
    """

    path: str
    below: Handle | None = None

    @contextmanager
    def use(self) -> Iterator[str]:
        """Yield a path that can be opened while the `with` block runs.  For worker threads."""
        if self.below is None:
            yield self.path
            return
        with self.below.use() as descriptor:
            # A path through /proc works in every call that takes a path; `dir_fd` works in some only.
            yield f"/proc/self/fd/{descriptor}/{self.path}"


class EngineDirectories(Protocol):
    """A way from paths of the engine's host to files that this process can open."""

    async def locate(self, path: str) -> EngineDirectory:
        """Return where this process finds `path`, an absolute path of the engine's host.

        Raises `FileAbsent`, `FilesUnreachable` or `EngineUnavailable`.
        """
        ...


class SameDirectories:
    """Use the engine's paths as paths of this machine.

    That is right when the engine and k3dreg both run on this machine, outside of containers.  `docker_root` and
    `content_store` are paths by which k3dreg reaches Docker's data directory and containerd's content store instead.

    A file that happens to exist at a wrong path does no harm, because the digest of its content is part of its name.
    """

    def __init__(self, engine: IEngineRequests, *, docker_root: str = "", content_store: str = "") -> None:
        self._engine = engine
        self._docker_root = docker_root
        self._content_store = content_store

    async def locate(self, path: str) -> EngineDirectory:
        """Return where `path` is on this machine.  Raises `EngineUnavailable` if `docker_root` is set."""
        if self._content_store:
            _, found, rest = path.partition("/io.containerd.content.v1.content/")
            if found:
                return EngineDirectory(posixpath.join(self._content_store, rest))
        if self._docker_root:
            root = (await self._engine.info()).root_dir.rstrip("/") + "/"
            if path.startswith(root):
                return EngineDirectory(posixpath.join(self._docker_root, path[len(root) :]))
        return EngineDirectory(path)
