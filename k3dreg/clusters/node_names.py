"""Find the name of the node that has an address, for users who read what it pulled."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.interfaces import IReactorTime

from k3dreg.clusters.cluster_nodes import nodes_by_address
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci.errors import EngineError
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.single_flight import SingleFlight

log = make_logger()

# Seconds for which the engine's list of containers counts: for an address of a node, and for any other.  Clusters are
# made anew under the same addresses, but not so fast.
_KNOWN = 5.0
_UNKNOWN = 1.0


class NodeNames:
    """The names of the nodes by address, from lists of the engine's containers that are a few seconds old.

    Call `shutdown` at the end.
    """

    def __init__(self, engine: IEngineRequests, clock: IReactorTime) -> None:
        self._engine = engine
        self._clock = clock
        self._names: Mapping[str, str] = {}
        self._listed_at: float | None = None
        self._listing: SingleFlight[str, None] = SingleFlight()

    async def at(self, address: str) -> str:
        """Return the name of the node with this address; "" if no node has it, or the engine does not answer."""
        fresh = _KNOWN if address in self._names else _UNKNOWN
        if self._listed_at is None or not 0 <= self._clock.seconds() - self._listed_at < fresh:
            await self._listing.join("nodes", self._list)
        return self._names.get(address, "")

    async def shutdown(self) -> None:
        """Ask the engine for nothing more."""
        await self._listing.shutdown()

    async def _list(self) -> None:
        try:
            nodes = await nodes_by_address(self._engine)
            self._names = {address: node.name for address, node in nodes.items()}
        except EngineError as error:
            log.debug("the nodes are not known: {error}", error=error)
            self._names = {}
        self._listed_at = self._clock.seconds()
