"""`k3dreg link IMAGE [NODE…]`: links an image's layers into nodes now, and says what that saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from k3dreg.clusters.cluster_nodes import cluster_nodes
from k3dreg.clusters.nodes import Node
from k3dreg.commands.engine_image import image_of
from k3dreg.docker.interfaces import IEngine, IEngineRequests
from k3dreg.engine_files.layout import chain_ids
from k3dreg.formats.text import counted, size
from k3dreg.linking.layer_linking import told
from k3dreg.linking.linker import LinkingResult
from k3dreg.linking.linkers import ILinkers
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.oci.errors import K3dregError
from k3dreg.oci.reference import Reference
from k3dreg.registry.own_names import OwnNames
from k3dreg.streaming.workers import Workers


class IAsked(IEngine, IEngineRequests, Protocol):
    """What the command asks the engine."""


async def link(
    engine: IAsked,
    linkers: ILinkers,
    workers: Workers,
    names: OwnNames,
    reference: Reference,
    nodes: Sequence[str],
    say: Callable[[str], object],
) -> int:
    """Link the image into the named nodes, all if none is named; return the exit status: 1 if one lacks a layer.

    `say` prints a line.
    """
    try:
        info = await engine.info()
        image = await image_of(engine, names, reference)
        there = await cluster_nodes(engine)
    except K3dregError as error:
        say(error.explained)
        return 1
    by_name = {node.name: node for node in there}
    unknown = [name for name in nodes if name not in by_name]
    if unknown or not there:
        known = ", ".join(sorted(by_name)) or "none"
        say(f"no node {', '.join(unknown) or 'of k3d or kind'} runs in Docker; nodes: {known}")
        return 1
    try:
        linker = await linkers.get(info)
    except CannotLink as error:
        say(f"no layers are linked: {error}")
        return 1
    status = 0
    for node in [by_name[name] for name in nodes] or there:
        chain = chain_ids(image.diff_ids)
        try:
            done = await workers.run(linker.link, info, node, str(reference.repository), chain)
        except CannotLink as error:
            say(f"{node.name}: no layers are linked: {error}")
            status = 1
        else:
            say(summary(done, node))
            status = status or int(done.missing > 0)
    return status


def summary(done: LinkingResult, node: Node) -> str:
    """Return what was done for a node, as a sentence."""
    if done.layers:
        said = f"{told(done, node)}; {size(done.saved)} are neither sent, unpacked nor stored twice"
    else:
        said = f"{node.name}: nothing to link"
    if done.there:
        said += f"; it had {counted(done.there, 'layer')}"
    if done.missing:
        said += f"; Docker has not unpacked {done.missing}, which the node will pull"
    return said
