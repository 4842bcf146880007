"""Collects what observers are told, and the state of engine and store, for the pages about the daemon."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from twisted.internet.interfaces import IReactorTime

from k3dreg.clusters.node_names import NodeNames
from k3dreg.config.retention import RetainRule
from k3dreg.docker import images
from k3dreg.docker.image import EngineInfo, is_helper_image
from k3dreg.docker.images import ListedImage
from k3dreg.docker.interfaces import IEngine
from k3dreg.docker.system import ping
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError
from k3dreg.reporting.observer import IObserver
from k3dreg.status.board import Board, Observers
from k3dreg.status.cluster_list import LastPulls, listed_nodes
from k3dreg.status.metrics import MEDIA_TYPE, Metrics, Readings
from k3dreg.status.overview import Listed, ListedNode, Live, Overview, SourceState
from k3dreg.store.interfaces import IPushed
from k3dreg.streaming.single_flight import Recent

# Seconds for which a check of the engine counts, so that requests for health and metrics do not become as many requests
# to the engine.
_GOOD_FOR = 1.0
# The same for what the page tells of clusters and of pushed content: that takes reading files in all nodes, and all
# pushed tags.
_TOLD_FOR = 5.0
# Images in each list of the page.
_LISTED = 200

Sources = Callable[[EngineInfo], Awaitable[Sequence[SourceState]]]


class Monitor:
    """Gives the pages what they show.  Implements `IMonitoring`.  The other packages report to `observer`.

    Call `shutdown` at the end.
    """

    observer: IObserver

    def __init__(
        self,
        engine: IEngine,
        clock: IReactorTime,
        *,
        version: str,
        where: str,
        cache: Callable[[], Readings],
        pushed: IPushed,
        size_of: Callable[[Digest], int],
        sources: Sources,
    ) -> None:
        """`where` is the engine's address.

        `cache` returns the use of the store, `size_of` the size of a blob in it in bytes (0 if it is not there), and
        `sources` which sources can give images.
        """
        self._engine = engine
        self._clock = clock
        self._version = version
        self._where = where
        self._cache = cache
        self._pushed = pushed
        self._size_of = size_of
        self._sources = sources
        self._node_names = NodeNames(engine, clock)
        self._board = Board(clock, self._node_names.at)
        self._metrics = Metrics(version, cache, self._board.nodes)
        self._trouble = Recent(self._look, clock, _GOOD_FOR)
        self._clusters = Recent(self._look_at_clusters, clock, _TOLD_FOR)
        self.retain(())
        self._last_pulls = LastPulls()
        self.observer = Observers([self._board, self._metrics, self._last_pulls])

    def retain(self, rules: Sequence[RetainRule]) -> None:
        """Tell from now on what these rules would free.  There are none at first."""
        self._use = Recent(lambda: self._pushed.usage(rules), self._clock, _TOLD_FOR)

    async def engine_trouble(self) -> str:
        """Return why the engine cannot be used, or "".  Requests at the same time share one check."""
        return await self._trouble.get()

    async def metrics(self) -> tuple[str, bytes]:
        """Return the media type and the text of all metrics."""
        self._metrics.engine_up = not await self.engine_trouble()
        return MEDIA_TYPE, self._metrics.text()

    def live(self) -> Live:
        """Return the work under way, and the pulls and requests that have ended last."""
        return self._board.live()

    async def shutdown(self) -> None:
        """End all pulls that are under way."""
        self._board.shutdown()
        await self._node_names.shutdown()

    async def overview(self) -> Overview:
        """Return the state of engine and store; if the engine does not answer, with the reason in `trouble`."""
        trouble = await self.engine_trouble()
        engine = ""
        images: list[Listed] = []
        sources: Sequence[SourceState] = ()
        clusters: Sequence[ListedNode] = ()
        if not trouble:
            try:
                info = await self._engine.info()
                engine = f"{'Podman' if info.store.value == 'podman' else 'Docker'} {info.version}, "
                engine += f"{info.store.value} image store"
                images = await self._images()
                sources = await self._sources(info)
                clusters = await self._clusters.get()
            except EngineError as error:
                trouble = str(error)
        pushed, pushed_count = await self._list_pushed()
        cache = self._cache()
        return Overview(
            version=self._version,
            engine=engine,
            where=self._where,
            trouble=trouble,
            sources=tuple(sources),
            clusters=tuple(clusters),
            images=tuple(images[:_LISTED]),
            image_count=len(images),
            pushed=tuple(pushed),
            pushed_count=pushed_count,
            pushed_use=await self._use.get(),
            cache_bytes=cache.cache_bytes,
            cache_limit=cache.cache_limit,
            cache_blobs=cache.cache_blobs,
            evicted_blobs=cache.evicted_blobs,
            evicted_bytes=cache.evicted_bytes,
        )

    async def _list_pushed(self) -> tuple[list[Listed], int]:
        """Return the first `_LISTED` pushed tags by name, and the number of all.

        The size of a tag is that of all content in the store that belongs to it.  Content of two images counts for
        both.
        """
        now = self._clock.seconds()
        images, count = await self._pushed.images(_LISTED)
        return [
            Listed(
                f"{image.repository}:{image.tag}",
                str(image.digest),
                sum(map(self._size_of, image.contents)),
                now - image.since if image.since else None,
            )
            for image in images
        ], count

    async def _look(self) -> str:
        trouble = ""
        try:
            await ping(self._engine)
            await self._engine.info()
        except EngineError as error:
            trouble = error.explained
        return trouble

    async def _look_at_clusters(self) -> Sequence[ListedNode]:
        return await listed_nodes(self._engine, self._last_pulls.times)

    async def _images(self) -> list[Listed]:
        """Return the engine's images, newest first.  Raises `EngineError`."""
        return listed(await images.listed(self._engine), self._clock.seconds())


def listed(found: Iterable[ListedImage], now: float) -> list[Listed]:
    """Return a row for each name of each image, newest first, without k3dreg's own helper images.

    `now` is in seconds since the epoch.
    """
    rows = [
        # The time is 0 for reproducible builds, which leave it out.
        Listed(name, image.id, image.size, now - image.created if image.created > 0 else None)
        for image in found
        for name in image.names
        if not is_helper_image(name)
    ]
    return sorted(rows, key=lambda image: (image.age is None, image.age or 0.0, image.name))
