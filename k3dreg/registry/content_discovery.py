"""The use case of listing tags, repositories and referrers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.interfaces import IImageNames
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError, NameUnknown
from k3dreg.oci.listing import Names, in_order
from k3dreg.oci.reference import DOCKER_HUB, Repository, Tag
from k3dreg.registry.own_names import OwnNames
from k3dreg.reporting.logger import make_logger
from k3dreg.store.interfaces import IPushed, ReferrersPage
from k3dreg.streaming.single_flight import FreshFlight
from k3dreg.streaming.workers import Workers

log = make_logger()

# Seconds for which a client that goes from page to page gets pages of the same list.
_PAGED_FOR = 10.0
# Seconds after which a request for the list does not delay the next one any more, in case it is never answered.
_MAX_WAIT = 10.0


@frozen
class EngineList:
    """The names of the engine's images at one time: paths by registry, and tags by repository."""

    repositories: Mapping[str | None, Names]
    tags: Mapping[Repository, Names]

    @classmethod
    def of(cls, found: Iterable[tuple[Repository, Tag]]) -> EngineList:
        """Group names by registry and by repository.  Call it in a worker thread: ten thousand names take a while."""
        paths: dict[str | None, set[str]] = {}
        tags: dict[Repository, set[str]] = {}
        for repository, tag in found:
            own = Repository(_lower(repository.registry), repository.path)
            paths.setdefault(own.registry, set()).add(own.path)
            tags.setdefault(own, set()).add(tag.name)
        return cls(
            {registry: Names(each) for registry, each in paths.items()},
            {repository: Names(each) for repository, each in tags.items()},
        )


_EMPTY = EngineList({}, {})


class EngineLists:
    """Asks the engine for its list of images, once for all requests that wait at the same time.

    Call `shutdown` at the end.
    """

    def __init__(self, names: IImageNames, workers: Workers, clock: IReactorTime) -> None:
        self._names = names
        self._workers = workers
        self._clock = clock
        self._questions: FreshFlight[str, EngineList] = FreshFlight(clock, _MAX_WAIT)
        self._last = _EMPTY
        self._asked = -_PAGED_FOR

    async def get(self, *, next_page: bool) -> EngineList:
        """Return the list as it is now; for a `next_page`, a list that is less than `_PAGED_FOR` seconds old will do.

        Raises `EngineError`.
        """
        if next_page and 0 <= self._clock.seconds() - self._asked < _PAGED_FOR:
            return self._last
        return await self._questions.ask("", self._ask)

    async def _ask(self) -> EngineList:
        asked = self._clock.seconds()
        found = await self._workers.run(EngineList.of, await self._names.names())
        if asked >= self._asked:  # a request of more than `_MAX_WAIT` seconds may end after the next one
            self._last, self._asked = found, asked
        return found

    def shutdown(self) -> Deferred[None]:
        """Cancel the requests under way; fires when they have ended.  `get` raises `CancelledError` from now on."""
        return self._questions.shutdown()


class Discovery:
    """Lists what was pushed, and what the engine has under this registry's names.  Implements `IDiscovery`."""

    def __init__(self, pushed: IPushed, names: OwnNames, engine: EngineLists | None = None) -> None:
        self._pushed = pushed
        self._names = names
        self._engine = engine

    async def tags(self, repository: Repository, last: str | None, limit: int) -> Sequence[str]:
        own = self._names.own(repository)
        engine = await self._in_engine(next_page=last is not None)
        engines = [names for called in self._called(own) if (names := engine.tags.get(called))]
        if not engines and not self._pushed.has(own):
            raise NameUnknown(f"nothing was pushed to {repository}, and Docker has no image of this name")
        return _merged(await self._pushed.tags(own, last, limit), engines, last, limit)

    async def repositories(self, last: str | None, limit: int) -> Sequence[str]:
        engine = await self._in_engine(next_page=last is not None)
        engines = [names for host in self._hosts() if (names := engine.repositories.get(host))]
        return _merged(await self._pushed.own_names(last, limit), engines, last, limit)

    async def referrers(
        self, repository: Repository, subject: Digest, artifact_type: str | None, last: str | None, room: int
    ) -> ReferrersPage:
        return await self._pushed.referrers(self._names.own(repository), subject, artifact_type, last, room)

    def _hosts(self) -> Sequence[str | None]:
        """Return the hosts that names of this registry's images may have in the engine; None is for a bare name."""
        return [None, *dict.fromkeys(host.lower() for host in self._names.hosts)]

    def _called(self, asked: Repository) -> Iterator[Repository]:
        """Yield the names that the repository `asked` may have in the engine."""
        if asked.registry is None:
            for host in self._hosts():
                yield Repository(host, asked.path)
            return
        yield Repository(_lower(asked.registry), asked.path)
        if asked.registry == DOCKER_HUB:  # as the engine itself reads a bare name
            yield Repository(None, asked.path)
            if asked.path.startswith("library/"):
                yield Repository(None, asked.path.removeprefix("library/"))

    async def _in_engine(self, *, next_page: bool) -> EngineList:
        """Return the engine's list, or an empty one if the engine fails: pushed content is listed without it, too."""
        if self._engine is None:
            return _EMPTY
        try:
            return await self._engine.get(next_page=next_page)
        except EngineError as error:
            log.warn("a list lacks Docker's images, because Docker does not list them: {error}", error=error)
            return _EMPTY


def _merged(names: Sequence[str], lists: Sequence[Names], last: str | None, limit: int) -> Sequence[str]:
    """Return the first `limit` of `names` and of what follows `last` in `lists`, in lexical order."""
    return in_order([*names, *(name for each in lists for name in each.after(last, limit))])[:limit]


def _lower(registry: str | None) -> str | None:
    return None if registry is None else registry.lower()
