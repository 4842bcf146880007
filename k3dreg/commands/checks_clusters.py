"""Checks whether the clusters' nodes have k3dreg for a mirror."""

from __future__ import annotations

from k3dreg.attaching.attaching import states
from k3dreg.commands.checks import OK, WARN, Check
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci.errors import EngineError

_NAME = "clusters"


async def cluster_checks(engine: IEngineRequests) -> list[Check]:
    """Return a check for each node of a cluster in this engine.  Problems raise nothing."""
    try:
        found = await states(engine)
    except EngineError as error:
        return [Check(_NAME, WARN, f"the engine did not answer: {error}", error.advice)]
    if not found:
        return [Check(_NAME, OK, "no cluster of k3d, kind or minikube is in this Docker")]
    return [
        Check(_NAME, OK, says)
        if (says := f"{state.node.cluster}, {state.node.name}: {state.says}") and state.has_mirror
        else Check(_NAME, WARN, says, f"k3dreg attach {state.node.cluster}")
        for state in found
    ]
