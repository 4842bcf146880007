"""Nodes of clusters that are containers of the engine, and where their files are on the engine's host."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping

from attrs import frozen

from k3dreg.clusters.linking_errors import CannotLink

# The label and its values of a node's container, and the socket of its containerd.
_K3D = "k3d.role", ("server", "agent"), "/run/k3s/containerd/containerd.sock"
_KIND = "io.x-k8s.kind.role", ("control-plane", "worker"), "/run/containerd/containerd.sock"
# containerd's namespace of the kubelet's images.
NAMESPACE = "k8s.io"


@frozen
class NodeMount:
    """A directory of the engine's host, `source`, at `destination` in a container."""

    source: str
    destination: str


@frozen
class Node:
    """A running node: its container's ID and name, its first process, its containerd's socket, and its mounts.

    `socket` is a path in the node, and `pid` is the number of the process on the engine's host.
    """

    id: str
    name: str
    pid: int
    socket: str
    mounts: tuple[NodeMount, ...] = ()


def socket_by_labels(labels: Mapping[str, str]) -> str:
    """Return the path of the containerd socket in a container with these labels; "" if it is no node."""
    for label, values, socket in (_K3D, _KIND):
        if labels.get(label) in values:
            return socket
    return ""


def on_host(path: str, mounts: Iterable[NodeMount]) -> tuple[str, str]:
    """Return a node's path as a path on the engine's host, and the source of the mount in which it lies.

    Raises `CannotLink` if it lies in none: then it is in the container's own file system.
    """
    if not path.startswith("/") or posixpath.normpath(path) != path:
        raise CannotLink("the node's containerd names a directory that is no absolute path")
    within = [each for each in mounts if each.destination and f"{path}/".startswith(f"{each.destination.rstrip('/')}/")]
    if not within:
        raise CannotLink("the node's snapshots are in no volume")
    found = max(within, key=lambda each: len(each.destination.rstrip("/")))
    return found.source.rstrip("/") + path[len(found.destination.rstrip("/")) :], found.source
