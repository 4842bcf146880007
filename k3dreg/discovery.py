"""The use case of finding out what is here."""

from __future__ import annotations

from collections.abc import Sequence

from zope.interface import implementer

from k3dreg.interfaces import IDiscovery, IImageNames, IPushed, PushedManifest
from k3dreg.log import make_logger
from k3dreg.model.digest import Digest
from k3dreg.model.errors import EngineError, NameUnknown
from k3dreg.model.reference import DOCKER_HUB, Repository, Tag
from k3dreg.names import OwnNames
from k3dreg.protocol.listing import in_order

log = make_logger()


@implementer(IDiscovery)
class Discovery:
    """See `IDiscovery`.  Lists what was pushed, and beside it what the engine has under the same names."""

    def __init__(self, pushed: IPushed, names: OwnNames, engine: IImageNames | None = None) -> None:
        self._pushed = pushed
        self._names = names
        self._engine = engine

    async def tags(self, repository: Repository) -> Sequence[str]:
        own = self._names.own(repository)
        asked = [own] if own.in_path is None else [own, own.in_path]
        engines = [
            tag.name
            for found, tag in await self._in_engine()
            if any(self._is_called(found, repository) for repository in asked)
        ]
        if not engines and not self._pushed.has(own):
            raise NameUnknown(f"nothing was pushed to {repository}, and Docker has no image of this name")
        return in_order([*self._pushed.tags(own), *engines])

    async def repositories(self) -> Sequence[str]:
        pushed = [repository.path for repository in self._pushed.repositories() if repository.registry is None]
        engines = [found.path for found, _ in await self._in_engine() if self._names.is_own(found.registry)]
        return in_order([*pushed, *engines])

    def referrers(self, repository: Repository, subject: Digest) -> Sequence[PushedManifest]:
        return self._pushed.referrers(self._names.own(repository), subject)

    def _is_called(self, found: Repository, asked: Repository) -> bool:
        """Whether an image that the engine calls `found` is one of the repository `asked`."""
        if asked.registry is None:
            return found.path == asked.path and self._names.is_own(found.registry)
        if found.registry is None and asked.registry == DOCKER_HUB:
            return Repository.parse(found.path, DOCKER_HUB) == asked  # as the engine itself reads a bare name
        return found == asked

    async def _in_engine(self) -> Sequence[tuple[Repository, Tag]]:
        """What was pushed is listed without the engine, too."""
        if self._engine is None:
            return ()
        try:
            return await self._engine.names()
        except EngineError as error:
            log.warn("the list of Docker's images is left out: {error}", error=error)
            return ()
