"""Paths of nodes on the engine's host."""

from __future__ import annotations

import pytest

from k3dreg.clusters.nodes import NodeMount
from k3dreg.linking.engine_host import on_host
from k3dreg.linking.linking_errors import CannotLink

MOUNTS = (
    NodeMount("/var/lib/docker/volumes/a/_data", "/var/lib/rancher/k3s"),
    NodeMount("/var/lib/docker/volumes/b/_data", "/var/lib"),
    NodeMount("/lib/modules", "/lib/modules"),
)


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
