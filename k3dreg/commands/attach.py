"""`k3dreg attach` and `k3dreg detach`: point clusters that are there at k3dreg, and put back what was before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from k3dreg.attaching.addresses_for_nodes import Addresses
from k3dreg.attaching.attaching import NodeState, attach, detach, leave_networks, states
from k3dreg.attaching.attaching_errors import CannotAttach
from k3dreg.attaching.cluster_watch import ClusterWatch
from k3dreg.clusters.cluster_nodes import ClusterNode, all_nodes
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci.errors import EngineError

Say = Callable[[str], object]

_NONE = "no cluster of k3d, kind or minikube's docker driver is in this Docker"


async def attach_clusters(
    engine: IEngineRequests, addresses: Addresses, names: Sequence[str], say: Say, *, every: bool
) -> int:
    """Attach the named clusters, or with `every` all; without either, list them.  Return the exit status.

    `say` prints a line.
    """
    try:
        if not names and not every:
            for line in listing(await states(engine)):
                say(line)
            return 0
        nodes = _chosen(await all_nodes(engine), names, say, every=every)
        if not nodes:
            return 1
        status, notes = 0, {}
        for node in nodes:
            try:
                done = await attach(engine, addresses, node)
            except (CannotAttach, EngineError) as error:
                say(_refused(node, "attached", error))
                status = 1
            else:
                pulls = "pulls now go" if done.is_new else "already attached: pulls go"
                say(f"{node.name}: {pulls} to {done.url} first")
                notes.update(dict.fromkeys(done.notes))
        for note in notes:
            say(note)
        # A failed attempt, or an earlier address, may have left k3dreg in a network.
        await leave_networks(engine, addresses)
    except EngineError as error:
        say(error.explained)
        return 1
    return status


async def detach_clusters(
    engine: IEngineRequests, addresses: Addresses, names: Sequence[str], say: Say, *, every: bool
) -> int:
    """Detach the named clusters, or with `every` all, and return the exit status.  `say` prints a line."""
    try:
        nodes = _chosen(await all_nodes(engine), names, say, every=every)
        status = 0 if nodes else 1
        for node in nodes:
            try:
                was = await detach(engine, node)
            except (CannotAttach, EngineError) as error:
                say(_refused(node, "detached", error))
                status = 1
            else:
                say(f"{node.name}: {'its mirrors are what they were before' if was else 'was not attached'}")
        for network in await leave_networks(engine, addresses):
            say(f"k3dreg left the network {network}")
    except EngineError as error:
        say(error.explained)
        return 1
    return status


async def follow(
    engine: IEngineRequests, addresses: Addresses, names: Sequence[str], say: Say, clock: IReactorTime
) -> None:
    """Attach the named clusters, without names all, and their nodes that start later, until this is cancelled."""
    watch = ClusterWatch(engine, addresses, say, clock)
    watch.change(names or ("*",))
    watch.start()
    try:
        await Deferred()
    finally:
        watch.stop()


def listing(found: Sequence[NodeState]) -> list[str]:
    """Return a line of titles, and a line for each node."""
    if not found:
        return [_NONE]
    lines = [("CLUSTER", "KIND", "NODE", "STATE")]
    lines += [(state.node.cluster, state.node.kind.name, state.node.name, state.says) for state in found]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(f"{word:{width}}" for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _chosen(nodes: Sequence[ClusterNode], names: Sequence[str], say: Say, *, every: bool) -> Sequence[ClusterNode]:
    """Return the nodes of the named clusters, or with `every` all that run.

    If there is no cluster, or none of a name, says so and returns none.
    """
    if not nodes:
        say(_NONE)
    if every:
        for node in nodes:
            if not node.runs:
                say(f"{node.name}: skipped, because it does not run")
        return [node for node in nodes if node.runs]
    known = dict.fromkeys(node.cluster for node in nodes)
    if unknown := [name for name in names if name not in known]:
        if known:
            say(f"there is no cluster {', '.join(unknown)}; clusters: {', '.join(known)}")
        return []
    return [node for node in nodes if node.cluster in names]


def _refused(node: ClusterNode, what: str, error: CannotAttach | EngineError) -> str:
    return f"{node.name}: not {what}: {error}" + (f"\n    {error.advice}" if error.advice else "")
