"""What images are in the engine, asked again only when something has changed there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from k3dreg.docker.image import EngineImage
from k3dreg.engine_files.engine_files import INamesVersion, NamesVersion
from k3dreg.oci.errors import ImageNotInEngine

# Seconds for which nothing may have changed before an answer is remembered.  A file system tells times of changes in
# steps, of some milliseconds or of up to two seconds: two changes within one step look like one.  And whoever makes a
# change may be held up for a moment between its time and the change itself.
_SETTLED = 1.0
_SETTLED_IN_WHOLE_SECONDS = 2.5
_MOST = 1000


class Images(Protocol):
    """Of `IEngine`."""

    async def current(self, name: str) -> EngineImage: ...


class RememberedImages:
    """`IEngine.current`, and as true: what a name means is looked at after the call, if need be in the engine.

    The engine changes its database before it says that a tag, a build or a pull is done.  So an answer to a question
    that was asked while the database was in the state in which it is now is what the engine would answer now.
    """

    def __init__(self, engine: Images, versions: INamesVersion, now: Callable[[], float]) -> None:
        """`now`: seconds since the epoch."""
        self._engine = engine
        self._versions = versions
        self._now = now
        self._version: NamesVersion | None = None
        self._known: dict[str, EngineImage | None] = {}  # None: the engine has no such image

    async def current(self, name: str) -> EngineImage:
        """As `IEngine.current`."""
        version = await self._versions.version()
        if version is None:
            return await self._engine.current(name)
        if version != self._version:
            self._version, self._known = version, {}
        if name in self._known:
            known = self._known[name]
            if known is None:
                raise ImageNotInEngine(f"Docker has no image {name}")
            return known
        settled = _SETTLED_IN_WHOLE_SECONDS if version.since.is_integer() else _SETTLED
        is_settled = version.since + settled < self._now()
        found: EngineImage | None = None
        try:
            found = await self._engine.current(name)
        except ImageNotInEngine:
            if is_settled:
                self._remember(version, name, None)
            raise
        # An image that lacks blobs may be mended on the disk.
        if is_settled and not found.is_damaged:
            self._remember(version, name, found)
        return found

    def _remember(self, version: NamesVersion, name: str, image: EngineImage | None) -> None:
        if version == self._version and len(self._known) < _MOST:
            self._known[name] = image
