"""Checks whether layers can be linked into the nodes (`--link-layers`)."""

from __future__ import annotations

from k3dreg.clusters.linker import Linker
from k3dreg.clusters.linking_errors import CannotLink
from k3dreg.commands.checks import OK, WARN, Check
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.engine_files.own_container import find_own_container
from k3dreg.oci.errors import EngineError
from k3dreg.registry.cluster_nodes import cluster_nodes
from k3dreg.streaming.workers import Workers

_NAME = "linking"
_PAGE = "docs/linking.md says where it works; nodes pull as without it"


async def linking_checks(engine: IEngineRequests, socket: str, workers: Workers) -> list[Check]:
    """Return a check for each node that runs.  `socket` is the path of the engine's UNIX socket, "" for none."""
    if await workers.run(find_own_container) is not None:
        says = "k3dreg runs in a container, from which it cannot reach the nodes' files"
        return [Check(_NAME, WARN, says, "run k3dreg as root on Docker's machine; a helper container is not made yet")]
    try:
        info, nodes = await engine.info(), await cluster_nodes(engine)
    except EngineError as error:
        return [Check(_NAME, WARN, f"the engine did not answer: {error}", error.advice)]
    if not nodes:
        return [Check(_NAME, OK, "no node of k3d or kind runs in this engine")]
    linker, checks = Linker(socket, "doctor"), []
    for node in nodes:
        try:
            await workers.run(linker.examine, info, node)
        except CannotLink as error:
            checks.append(Check(_NAME, WARN, f"no layers can be linked into {node.name}: {error}", _PAGE))
        else:
            checks.append(Check(_NAME, OK, f"layers can be linked into {node.name}"))
    return checks
