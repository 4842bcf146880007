"""Checks whether layers can be linked into the nodes (`--link-layers`)."""

from __future__ import annotations

import contextlib
from typing import Any

from k3dreg.clusters.cluster_nodes import cluster_nodes
from k3dreg.commands.checks import OK, WARN, Check
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.linking.linkers import ILinkers, make_linkers
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.oci.errors import EngineError
from k3dreg.streaming.workers import Workers

_NAME = "linking"
_PAGE = "docs/linking.md says where it works; nodes pull as without it"


async def linking_checks(engine: IEngineRequests, address: str, workers: Workers, reactor: Any) -> list[Check]:
    """Return a check for each node that runs.  The parameters are those of `make_linkers`.

    Where the daemon uses a helper container, a second one runs meanwhile.
    """
    linkers = await make_linkers(engine, address, workers, reactor)
    try:
        return await _checks(engine, linkers, workers)
    finally:
        with contextlib.suppress(EngineError):
            await linkers.close()


async def _checks(engine: IEngineRequests, linkers: ILinkers, workers: Workers) -> list[Check]:
    try:
        info, nodes = await engine.info(), await cluster_nodes(engine)
        linker = await linkers.get(info)
    except EngineError as error:
        return [Check(_NAME, WARN, f"the engine did not answer: {error}", error.advice)]
    except CannotLink as error:
        return [Check(_NAME, WARN, f"no layers can be linked: {error}", _PAGE)]
    if not nodes:
        return [Check(_NAME, OK, "no node of k3d or kind runs in this engine")]
    checks = []
    for node in nodes:
        try:
            await workers.run(linker.examine, info, node)
        except CannotLink as error:
            checks.append(Check(_NAME, WARN, f"no layers can be linked into {node.name}: {error}", _PAGE))
        else:
            checks.append(Check(_NAME, OK, f"layers can be linked into {node.name}"))
    return checks
