"""Nodes of clusters that are containers of the engine: their kinds, and what tells them from other containers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import frozen

_CONFIG = "/etc/containerd/config.toml"


@frozen
class NodeKind:
    """A kind of node, by the label of its container and the label's values, None for any value.

    `cluster` is the label with the cluster's name.  `socket` is the path of its containerd's socket, "" if layers
    cannot be linked into it.  `config` is the path of containerd's settings, and `registries` that of k3s'
    registries.yaml, "" for nodes without k3s.
    """

    name: str
    label: str
    values: tuple[str, ...] | None
    cluster: str
    socket: str
    config: str
    registries: str = ""


K3D = NodeKind(
    "k3d",
    "k3d.role",
    ("server", "agent"),
    "k3d.cluster",
    "/run/k3s/containerd/containerd.sock",
    "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "/etc/rancher/k3s/registries.yaml",
)
KIND = NodeKind(
    "kind",
    "io.x-k8s.kind.role",
    ("control-plane", "worker"),
    "io.x-k8s.kind.cluster",
    "/run/containerd/containerd.sock",
    _CONFIG,
)
# minikube's docker driver.  The cluster's label has the node's name, which is the cluster's, with a suffix for further
# nodes.
MINIKUBE = NodeKind("minikube", "role.minikube.sigs.k8s.io", None, "name.minikube.sigs.k8s.io", "", _CONFIG)
_MINIKUBES_FURTHER_NODE = re.compile(r"-m\d\d+$")
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
    """Return the path of the containerd socket in a container with these labels.

    "" if it is no node, or one into which layers cannot be linked.
    """
    kind = kind_by_labels(labels)
    return kind.socket if kind is not None else ""


def kind_by_labels(labels: Mapping[str, str]) -> NodeKind | None:
    """Return the kind of a node whose container has these labels; None if it is no node."""
    for kind in (K3D, KIND, MINIKUBE):
        value = labels.get(kind.label)
        if value is not None and (kind.values is None or value in kind.values):
            return kind
    return None


def cluster_by_labels(labels: Mapping[str, str]) -> str:
    """Return the name of the cluster of a node whose container has these labels, "" if it is no node."""
    kind = kind_by_labels(labels)
    if kind is None:
        return ""
    name = labels.get(kind.cluster, "")
    return _MINIKUBES_FURTHER_NODE.sub("", name) if kind is MINIKUBE else name
