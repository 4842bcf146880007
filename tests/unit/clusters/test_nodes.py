"""Nodes by their labels."""

from __future__ import annotations

import pytest

from k3dreg.clusters.nodes import socket_by_labels

K3S = "/run/k3s/containerd/containerd.sock"
KIND = "/run/containerd/containerd.sock"


@pytest.mark.parametrize(
    ("labels", "socket"),
    [
        ({"app": "k3d", "k3d.role": "server"}, K3S),
        ({"k3d.role": "agent"}, K3S),
        ({"io.x-k8s.kind.cluster": "kind", "io.x-k8s.kind.role": "control-plane"}, KIND),
        ({"io.x-k8s.kind.role": "worker"}, KIND),
        ({"k3d.role": "loadbalancer"}, ""),
        ({"k3d.role": "registry"}, ""),
        ({"io.x-k8s.kind.role": "external-load-balancer"}, ""),
        ({}, ""),
    ],
)
def test_a_node_is_known_by_its_labels(labels: dict[str, str], socket: str) -> None:
    assert socket_by_labels(labels) == socket
