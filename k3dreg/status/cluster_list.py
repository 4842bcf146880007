"""The clusters' nodes on the status page: attached or not, and when each has pulled last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cachetools import LRUCache
from twisted.web.template import Tag, tags

from k3dreg.attaching.attaching import states
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.formats.text import age
from k3dreg.oci.errors import EngineError
from k3dreg.reporting.activity import RequestReport
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.observer import NullObserver
from k3dreg.status.overview import ListedNode

log = make_logger()

# Clients of which the last pull is remembered.  A machine has some ten nodes at a time.
_CLIENTS = 1000


class LastPulls(NullObserver):
    """An observer that remembers when each client has got a manifest last, by its address."""

    def __init__(self) -> None:
        self.times: LRUCache[str, float] = LRUCache(_CLIENTS)

    def answered(self, report: RequestReport) -> None:
        """Remember the request if it got a manifest."""
        if report.manifest is not None and report.status < 400 and not report.aborted:
            self.times[report.client] = report.at


async def listed_nodes(engine: IEngineRequests, last_pulls: Mapping[str, float]) -> Sequence[ListedNode]:
    """Return the nodes of all clusters, none if the engine does not tell.

    `last_pulls` are times by the clients' addresses.
    """
    try:
        found = await states(engine)
    except EngineError as error:
        log.debug("the clusters' nodes cannot be listed: {error}", error=error)
        return ()
    return [
        ListedNode(
            state.node.cluster,
            state.node.name,
            state.says,
            state.has_mirror,
            max((last_pulls[address] for address in state.node.addresses if address in last_pulls), default=None),
        )
        for state in found
    ]


def clusters(nodes: Sequence[ListedNode], now: float) -> Tag:
    """Return the table of nodes.  `now` is in seconds since the epoch."""
    if not nodes:
        return tags.p("None of k3d, kind or minikube in this Docker.", class_="quiet")
    head = tags.tr(*(tags.th(title, scope="col") for title in ("Cluster", "Node", "Mirror", "Last pull")))
    rows = [
        tags.tr(
            tags.td(node.cluster, class_="name"),
            tags.td(node.name, class_="name"),
            tags.td(node.state, class_="" if node.has_mirror else "quiet"),
            tags.td("none seen" if node.last_pull is None else f"{age(now - node.last_pull)} ago"),
        )
        for node in nodes
    ]
    told = [tags.table(tags.thead(head), tags.tbody(*rows))]
    if not all(node.has_mirror for node in nodes):
        told.append(tags.p("To point a cluster here: ", tags.code("k3dreg attach CLUSTER"), class_="quiet"))
    return tags.div(*told)
