"""Count what each node got, for the status page and the metrics."""

from __future__ import annotations

from collections import Counter

from attrs import define, field
from cachetools import LRUCache

from k3dreg.reporting.activity import LinkedLayers
from k3dreg.status.overview import NodeCounts, SeenPull

# Nodes that are counted, those that got something last: a machine runs some ten at a time.
_MOST = 100
OTHER = "other"


@define
class _Counts:
    pulls: Counter[str] = field(factory=Counter)
    linked: int = 0
    saved: int = 0
    sent_bytes: int = 0


class Nodes:
    """The counts of each node since the start, by its name.  All clients that are no nodes are counted as one."""

    def __init__(self) -> None:
        self._counts: LRUCache[str, _Counts] = LRUCache(_MOST)

    def pulled(self, pull: SeenPull) -> None:
        """Count a pull that is over."""
        counts = self._of(pull.node or OTHER)
        counts.pulls[pull.way] += 1
        counts.sent_bytes += pull.sent_bytes

    def linked(self, done: LinkedLayers) -> None:
        """Count a linking, for a pull or in advance."""
        counts = self._of(done.node)
        counts.linked += done.layers
        counts.saved += done.saved

    def counts(self) -> tuple[NodeCounts, ...]:
        """Return the counts by the nodes' names."""
        return tuple(
            NodeCounts(name, dict(each.pulls), each.linked, each.saved, each.sent_bytes)
            for name, each in sorted(self._counts.items())
        )

    def _of(self, name: str) -> _Counts:
        return self._counts.setdefault(name, _Counts())
