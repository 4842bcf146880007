"""From which repositories nodes have pulled."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from k3dreg.clusters.nodes import Node
from k3dreg.oci.reference import Repository
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.pulled_repositories import PulledRepositories

NODE = Node("2", "agent-0", 42, "/run/k3s/containerd/containerd.sock")


def nodes_of(name: str, pulled: Repository) -> Mapping[str, str]:
    names = OwnNames()
    names.tell(["localhost:5005", "k3d-registry:5000"])
    repositories = PulledRepositories(names)
    repositories.add(NODE, pulled)
    return repositories.nodes_of(name)


@pytest.mark.parametrize(
    ("name", "pulled"),
    [
        ("app:2", Repository.parse("app", "docker.io")),
        ("app", Repository.parse("library/app", "docker.io")),
        ("docker.io/team/app:2", Repository.parse("team/app", "docker.io")),
        ("ghcr.io/team/app:2", Repository.parse("team/app", "ghcr.io")),
        ("ghcr.io/team/app@sha256:" + 64 * "0", Repository.parse("team/app", "ghcr.io")),
        ("localhost:5005/app:2", Repository.parse("app", "k3d-registry:5000")),
        ("localhost:5005/app:2", Repository.parse("app")),
    ],
)
def test_a_name_of_dockers_is_that_of_the_repository_that_a_node_asked_for(name: str, pulled: Repository) -> None:
    assert nodes_of(name, pulled) == {"2": str(pulled)}


@pytest.mark.parametrize(
    "name", ["other:2", "ghcr.io/app:2", "localhost:5006/app:2", "Not a name", "<none>:<none>", ""]
)
def test_other_names_are_those_of_no_node(name: str) -> None:
    assert nodes_of(name, Repository.parse("app", "docker.io")) == {}


def test_a_repository_may_be_that_of_several_nodes() -> None:
    repositories = PulledRepositories(OwnNames())
    app = Repository.parse("app", "docker.io")
    for identity in ("1", "2"):
        repositories.add(Node(identity, "", 1, ""), app)
    assert repositories.nodes_of("app:1") == {"1": str(app), "2": str(app)}
