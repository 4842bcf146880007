"""Ask the nodes of clusters which images they hold."""

from __future__ import annotations

import re
from collections.abc import Collection

from k3dreg.clusters.cluster_nodes import ClusterNode, all_nodes
from k3dreg.clusters.nodes import NAMESPACE
from k3dreg.docker import container_commands
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError
from k3dreg.store.interfaces import NodeImages
from k3dreg.streaming.gather import all_of

_DIGEST = re.compile(r"\bsha256:[0-9a-f]{64}\b")


async def images_on_nodes(engine: IEngineRequests) -> NodeImages | None:
    """Return the digests of the images that each node holds, by the ID of the node's container.

    They are those of manifests and indexes, and others that do no harm.  A node that does not tell has None: it does
    not run, or has no `ctr`.  Returns None if the engine does not list its containers.
    """
    try:
        nodes = await all_nodes(engine)
    except EngineError:
        return None
    held = await all_of(_images_on(engine, node) for node in nodes)
    return {node.id: digests for node, digests in zip(nodes, held, strict=True)}


async def _images_on(engine: IEngineRequests, node: ClusterNode) -> Collection[Digest] | None:
    if not node.runs:
        return None
    address = ("--address", node.kind.socket) if node.kind.socket else ()
    try:
        # Not `--quiet`, which prints names only: an image has a name with its digest if the kubelet pulled it.
        ended = await container_commands.run(
            engine, node.id, "ctr", *address, "--namespace", NAMESPACE, "images", "list"
        )
    except EngineError:
        return None
    return {Digest.parse(found) for found in _DIGEST.findall(ended.output)} if ended.status == 0 else None
