"""A linker that links nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from k3dreg.clusters.linker import Linking
from k3dreg.clusters.nodes import Node
from k3dreg.docker.image import EngineInfo
from k3dreg.oci.digest import Digest


class FakeLinker:
    """Links what it is told, and calls `proceed` once before."""

    def __init__(self) -> None:
        self.linked: list[tuple[str, str, Sequence[Digest]]] = []
        self.cleaned: list[str] = []
        self.done = Linking(layers=2, files=26390, seconds=1.43, saved=1000)
        self.error: Exception | None = None

    def link(
        self, info: EngineInfo, node: Node, repository: str, chain: Sequence[Digest], proceed: Callable[[], None]
    ) -> Linking:
        proceed()
        self.linked.append((node.name, repository, chain))
        if self.error is not None:
            raise self.error
        return self.done

    def clean_up(self, node: Node) -> None:
        self.cleaned.append(node.name)
