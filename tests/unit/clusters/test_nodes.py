"""Nodes by their labels, and their paths on the host."""

from __future__ import annotations

import pytest

from k3dreg.clusters.linking_errors import CannotLink
from k3dreg.clusters.nodes import NodeMount, on_host, socket_by_labels

K3S = "/run/k3s/containerd/containerd.sock"
KIND = "/run/containerd/containerd.sock"
MOUNTS = (
    NodeMount("/var/lib/docker/volumes/a/_data", "/var/lib/rancher/k3s"),
    NodeMount("/var/lib/docker/volumes/b/_data", "/var/lib"),
    NodeMount("/lib/modules", "/lib/modules"),
)


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


def test_the_longest_mount_counts() -> None:
    path = "/var/lib/rancher/k3s/agent/containerd/snapshots/1/fs"
    source = "/var/lib/docker/volumes/a/_data"
    assert on_host(path, MOUNTS) == (f"{source}/agent/containerd/snapshots/1/fs", source)
    assert on_host("/var/lib/rancher/k3s-too/1", MOUNTS)[1] == "/var/lib/docker/volumes/b/_data"
    assert on_host("/var/lib/rancher/k3s", MOUNTS) == (source, source)


def test_a_mount_of_the_whole_file_system() -> None:
    assert on_host("/a/b", (NodeMount("/disk/", "/"),)) == ("/disk/a/b", "/disk/")


@pytest.mark.parametrize("path", ["/var/lib/../../etc", "var/lib/x", "/var/lib/x/", "/var//lib", "", "/var/lib/./x"])
def test_a_path_that_could_lead_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(CannotLink, match="no absolute path"):
        on_host(path, MOUNTS)


def test_a_path_in_no_mount_is_refused() -> None:
    with pytest.raises(CannotLink, match="in no volume"):
        on_host("/opt/snapshots/1", MOUNTS)
