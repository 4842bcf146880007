"""Remember from which repositories each node has pulled."""

from __future__ import annotations

from collections.abc import Mapping

from cachetools import LRUCache

from k3dreg.clusters.nodes import Node
from k3dreg.oci.errors import InvalidName
from k3dreg.oci.reference import Repository, split_name
from k3dreg.registry.own_names import OwnNames

_REPOSITORIES = 1000


class PulledRepositories:
    """The nodes that have pulled from each repository, in memory, for the repositories used most recently."""

    def __init__(self, names: OwnNames) -> None:
        self._names = names
        # By repository, the IDs of the nodes, each with the repository's name as the node spells it.
        self._nodes: LRUCache[Repository, dict[str, str]] = LRUCache(_REPOSITORIES)

    def add(self, node: Node, repository: Repository) -> None:
        """Record that a node pulls from a repository, which is named as the node asks for it."""
        self._nodes.setdefault(self._names.own(repository), {})[node.id] = str(repository)

    def nodes_of(self, name: str) -> Mapping[str, str]:
        """Return the IDs of the nodes that have pulled from the repository of an image's name, as Docker writes it.

        Each comes with the name of the repository as the node spells it.
        """
        try:
            named = Repository.of_name(split_name(name)[0])
            # Docker reads a name without a host as Docker Hub's.
            repository = named.upstream if named.registry is None else self._names.own(named)
        except InvalidName:
            return {}
        return self._nodes.get(repository, {})
