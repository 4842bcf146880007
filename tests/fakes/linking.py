"""A linker that links nothing, and what makes such linkers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from k3dreg.clusters.nodes import Node
from k3dreg.docker.image import EngineInfo
from k3dreg.linking.linker import LinkingResult
from k3dreg.oci.digest import Digest


class FakeLinker:
    """Links what it is told, and calls `proceed` once before."""

    def __init__(self) -> None:
        self.linked: list[tuple[str, str, Sequence[Digest]]] = []
        self.cleaned: list[str] = []
        self.done = LinkingResult(layers=2, files=26390, seconds=1.43, saved=1000)
        self.error: Exception | None = None

    def link(
        self,
        info: EngineInfo,
        node: Node,
        repository: str,
        chain: Sequence[Digest],
        proceed: Callable[[], None] = lambda: None,
    ) -> LinkingResult:
        proceed()
        self.linked.append((node.name, repository, chain))
        if self.error is not None:
            raise self.error
        return self.done

    def examine(self, info: EngineInfo, node: Node) -> None:
        if self.error is not None:
            raise self.error

    def clean_up(self, node: Node) -> None:
        self.cleaned.append(node.name)


class FakeLinkers:
    """Gives the linker, or fails with `error`."""

    def __init__(self, linker: FakeLinker) -> None:
        self.linker = linker
        self.error: Exception | None = None
        self.calls: list[str] = []

    async def get(self, info: EngineInfo) -> FakeLinker:
        self.calls.append("get")
        if self.error is not None:
            raise self.error
        return self.linker

    async def close(self) -> None:
        self.calls.append("close")

    async def remove_left(self) -> None:
        self.calls.append("remove left")
