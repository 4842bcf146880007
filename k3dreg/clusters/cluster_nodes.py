"""Find the nodes of clusters among the engine's containers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import frozen

from k3dreg.clusters.nodes import Node, NodeKind, NodeMount, cluster_by_labels, kind_by_labels, socket_by_labels
from k3dreg.docker import containers
from k3dreg.docker.containers import ListedContainer
from k3dreg.docker.interfaces import IEngineRequests


@frozen
class ClusterNode:
    """A node, running or not: its container's ID, name, networks and IP addresses, and its cluster."""

    id: str
    name: str
    kind: NodeKind
    cluster: str
    runs: bool
    networks: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


async def all_nodes(engine: IEngineRequests) -> Sequence[ClusterNode]:
    """Return the nodes of all clusters, running or not, in the order of their clusters.  Raises `EngineError`."""
    found = [
        ClusterNode(
            each.id,
            each.name,
            kind,
            cluster_by_labels(each.labels),
            each.state == "running",
            each.networks,
            each.addresses,
        )
        for each in await containers.listed(engine)
        if (kind := kind_by_labels(each.labels)) is not None
    ]
    return sorted(found, key=lambda node: (node.cluster, node.kind.name, node.name))


async def cluster_nodes(engine: IEngineRequests) -> Sequence[Node]:
    """Return the nodes that run and into which layers can be linked: not those of minikube.  Raises `EngineError`."""
    return await _nodes(engine, lambda container: True)


async def node_at(engine: IEngineRequests, address: str) -> Node | None:
    """Return the node of `cluster_nodes` that has this IP address now; None if none has.  Raises `EngineError`."""
    found = await _nodes(engine, lambda container: address in container.addresses)
    return found[0] if len(found) == 1 else None


async def nodes_by_address(engine: IEngineRequests) -> Mapping[str, ListedContainer]:
    """Return the nodes that run by their IP addresses, without addresses that two nodes have.

    Raises `EngineError`.
    """
    nodes: dict[str, ListedContainer] = {}
    several: set[str] = set()
    for container in await containers.running(engine):
        if kind_by_labels(container.labels) is not None:
            several.update(address for address in container.addresses if address in nodes)
            nodes.update(dict.fromkeys(container.addresses, container))
    return {address: node for address, node in nodes.items() if address not in several}


async def _nodes(engine: IEngineRequests, wanted: Callable[[ListedContainer], bool]) -> Sequence[Node]:
    nodes = []
    for listed in await containers.running(engine):
        socket = socket_by_labels(listed.labels)
        if not socket or not wanted(listed):
            continue
        container = await containers.inspect(engine, listed.id)
        if container is not None and container.pid:
            mounts = tuple(NodeMount(source, destination) for source, destination in container.mounts)
            nodes.append(Node(listed.id, container.name, container.pid, socket, mounts))
    return nodes
