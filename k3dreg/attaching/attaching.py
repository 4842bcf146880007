"""Attach the nodes of clusters to k3dreg, detach them, and tell how they are now."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen

from k3dreg.attaching.addresses_for_nodes import Addresses
from k3dreg.attaching.attaching_errors import CannotAttach, NoMirrorFiles
from k3dreg.attaching.node_mirror import Mirror, attach_node, detach_node, read_mirror
from k3dreg.clusters.cluster_nodes import ClusterNode, all_nodes
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci.errors import EngineError, EngineUnavailable
from k3dreg.streaming.gather import all_of


@frozen
class NodeState:
    """A node, whether it is attached, whether it has any mirror of all registries, and the same in words.

    A node whose cluster was created with k3dreg has a mirror, and is not attached.  `is_known` is False for a node
    whose files cannot be read.
    """

    node: ClusterNode
    is_attached: bool
    has_mirror: bool
    says: str
    is_known: bool = True


@frozen
class Attached:
    """What attaching a node did: the URL that it uses now, whether that is new, and what the user should know."""

    url: str
    is_new: bool
    notes: Sequence[str] = ()


async def attach(engine: IEngineRequests, addresses: Addresses, node: ClusterNode) -> Attached:
    """Make k3dreg the first mirror of a node.  Raises `CannotAttach` and `EngineError`."""
    if not node.runs:
        raise CannotAttach("it does not run", advice="start the cluster first")
    address = await addresses.find(node)
    is_new, notes = await attach_node(engine, node, address.url)
    return Attached(address.url, is_new, notes)


async def detach(engine: IEngineRequests, node: ClusterNode) -> bool:
    """Remove what `attach` wrote, and return whether there was anything.  Raises `CannotAttach` and `EngineError`."""
    if not node.runs:
        raise CannotAttach("it does not run", advice="start the cluster first")
    return await detach_node(engine, node)


async def leave_networks(
    engine: IEngineRequests, addresses: Addresses, is_needed: Callable[[ClusterNode], bool] = lambda node: True
) -> Sequence[str]:
    """Leave the networks that k3dreg joined and that no attached node needs any more, and return their names.

    `is_needed` says whether k3dreg has to stay in the networks of an attached node.  A node whose files cannot be read
    counts as attached.  Raises `EngineError`.
    """
    attached = [state.node for state in await states(engine) if state.is_attached or not state.is_known]
    return await addresses.leave([node for node in attached if is_needed(node)])


async def states(engine: IEngineRequests) -> Sequence[NodeState]:
    """Return the state of every node, in the order of the clusters.  Raises `EngineError`."""
    return await all_of([_state(engine, node) for node in await all_nodes(engine)])


async def _state(engine: IEngineRequests, node: ClusterNode) -> NodeState:
    try:
        mirror = await read_mirror(engine, node)
    except EngineUnavailable:
        raise
    except (CannotAttach, EngineError) as error:
        is_known = isinstance(error, NoMirrorFiles)
        return NodeState(node, False, False, f"cannot be attached: {error}", is_known)
    says = _words(mirror) if node.runs else f"{_words(mirror)}; does not run"
    return NodeState(node, bool(mirror.attached), bool(mirror.hosts or mirror.attached), says)


def _words(mirror: Mirror) -> str:
    if mirror.attached:
        later = "" if mirror.hosts[:1] == mirror.attached[:1] else ", from its next start"
        return f"attached to {mirror.attached[0]}{later}"
    return f"has the mirror {mirror.hosts[0]} without attach" if mirror.hosts else "not attached"
