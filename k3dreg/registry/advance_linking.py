"""Link the layers of an image into nodes as soon as Docker has the image, before a pod asks for it."""

from __future__ import annotations

from cachetools import LRUCache
from twisted.internet.interfaces import IReactorTime

from k3dreg.clusters.cluster_nodes import cluster_nodes
from k3dreg.clusters.nodes import Node
from k3dreg.docker.image import EngineImage
from k3dreg.docker.interfaces import IEngine, IImageNames
from k3dreg.linking.layer_linking import LayerLinking, told
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError, ImageNotInEngine
from k3dreg.registry.new_names import NewNames
from k3dreg.registry.pulled_repositories import PulledRepositories
from k3dreg.reporting.logger import make_logger

log = make_logger()

# Images and nodes of which is remembered that the image was linked.
_LINKED = 10_000
# Seconds that linking an image may take: it took 2 s for 1.3 GB in 26,000 files, and 60 s for 94,000 on a busy machine.
_LONGEST = 300.0


class AdvanceLinking:
    """Links new images of the repositories from which nodes have pulled, into these nodes.

    A build gives its image a new tag each time, but in a repository that the node has pulled from.  It does nothing
    before `enable(True)`.  Call `stop` at the end.
    """

    def __init__(
        self,
        engine: IEngine,
        names: IImageNames,
        pulled: PulledRepositories,
        linking: LayerLinking,
        clock: IReactorTime,
    ) -> None:
        self._engine = engine
        self._pulled = pulled
        self._linking = linking
        self._new = NewNames(engine, names, self._is_wanted, self._link, clock)
        self._linked: LRUCache[tuple[str, Digest], bool] = LRUCache(_LINKED)

    def enable(self, wanted: bool) -> None:
        """Begin or stop to link in advance."""
        if wanted:
            self._new.start()
        else:
            self._new.stop()

    def stop(self) -> None:
        """Link nothing more.  A linking under way goes on until `LayerLinking` stops it."""
        self._new.stop()

    def _is_wanted(self, name: str) -> bool:
        return bool(self._pulled.nodes_of(name))

    async def _link(self, name: str) -> None:
        wanted = self._pulled.nodes_of(name)
        try:
            image = await self._engine.inspect(name)
            nodes = [node for node in await cluster_nodes(self._engine) if node.id in wanted]
        except (ImageNotInEngine, EngineError):
            return  # the image is gone, or the engine is: all its images are looked at when it is back
        for node in nodes:
            if (node.id, image.id) not in self._linked:
                await self._link_into(node, name, wanted[node.id], image)

    async def _link_into(self, node: Node, name: str, repository: str, image: EngineImage) -> None:
        try:
            done = await self._linking.link(node, repository, image.diff_ids, _LONGEST)
        except (CannotLink, EngineError) as error:
            log.info("{name} is not linked into {node} in advance: {error}", name=name, node=node.name, error=error)
            return
        except Exception:  # noqa: BLE001  (a bug with one image must not end the work on others)
            log.failure("{name} is not linked into {node} in advance", name=name, node=node.name)
            return
        self._linked[node.id, image.id] = True
        if done.layers:
            log.info("{name}, before a pod asks for it: {what}", name=name, what=told(done, node))
