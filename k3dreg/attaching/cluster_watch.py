"""Attach clusters as soon as they start, and nodes that join later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater

from k3dreg.attaching.addresses_for_nodes import Addresses
from k3dreg.attaching.attaching import attach, leave_networks
from k3dreg.attaching.attaching_errors import CannotAttach
from k3dreg.clusters.cluster_nodes import ClusterNode, all_nodes
from k3dreg.clusters.nodes import cluster_by_labels
from k3dreg.docker.events import follow_containers
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci.errors import EngineError, EngineUnavailable
from k3dreg.reporting.logger import make_logger

log = make_logger()

# Seconds after the start of a node at which k3dreg looks at all nodes.  At first a node may not reach k3dreg yet.  k3s
# writes its hosts.toml files within seconds, which may be after the first look.
_LOOKS = (0.0, 2.0, 5.0, 15.0, 40.0)
# Seconds until k3dreg asks again for the events of an engine that does not answer, or that refuses them.
_AGAIN, _REFUSED = 2.0, 60.0


class ClusterWatch:
    """Attaches the nodes of clusters whose name fits one of the patterns, from `start` to `stop`.

    Without patterns, as at first, it does nothing.
    """

    def __init__(
        self, engine: IEngineRequests, addresses: Addresses, say: Callable[[str], object], clock: IReactorTime
    ) -> None:
        """`say` is called with a sentence when a node is attached, and once when it cannot be attached."""
        self._engine = engine
        self._addresses = addresses
        self._patterns: tuple[str, ...] = ()
        self._has_started = False
        self._say = say
        self._clock = clock
        # Sentences that were said, by the ID of the node or the name of the cluster that they are about.
        self._said: dict[tuple[str, str], str] = {}
        self._planned: list[IDelayedCall] = []
        self._has_to_look = False
        self._woken: Deferred[None] | None = None
        self._running: list[Deferred[Any]] = []

    def change(self, patterns: Sequence[str]) -> None:
        """Attach the clusters that fit these patterns, beginning with those that run.  Attached ones stay attached."""
        if tuple(patterns) != self._patterns:
            self._patterns = tuple(patterns)
            self._begin_or_end()

    def start(self) -> None:
        """Begin as soon as there are patterns."""
        self._has_started = True
        self._begin_or_end()

    def stop(self) -> None:
        """Attach no more nodes until `start`."""
        self._has_started = False
        self._begin_or_end()

    def _begin_or_end(self) -> None:
        for running in self._running:
            running.cancel()
        self._running = []
        self._woken = None
        self._plan(())
        if self._has_started and self._patterns:
            for work in (self._listen(), self._look_again_and_again()):
                running = Deferred.fromCoroutine(work)
                running.addErrback(lambda failure: failure.trap(CancelledError) and None)
                running.addErrback(lambda failure: log.failure("watching clusters has stopped", failure=failure))
                self._running.append(running)

    async def _listen(self) -> None:
        while True:
            after = _AGAIN
            try:
                await follow_containers(self._engine, self._heard)
            except EngineUnavailable:
                pass  # the daemon's `EngineWatch` logs it
            except EngineError as error:
                after = _REFUSED
                self._plan(_LOOKS[:1])
                self._tell("", f"Docker does not report the start of containers: {error}")
            await deferLater(self._clock, after)

    def _heard(self, labels: Mapping[str, str]) -> None:
        """Plan looks: at the beginning, and after the start or end of a node."""
        if not labels or cluster_by_labels(labels):
            self._plan(_LOOKS)

    def _plan(self, looks: Sequence[float]) -> None:
        for planned in self._planned:
            if planned.active():
                planned.cancel()
        self._planned = [self._clock.callLater(after, self._wake) for after in looks]

    def _wake(self) -> None:
        self._has_to_look = True
        woken, self._woken = self._woken, None
        if woken is not None:
            woken.callback(None)

    async def _look_again_and_again(self) -> None:
        while True:
            if not self._has_to_look:
                self._woken = Deferred()
                await self._woken
            self._has_to_look = False
            try:
                await self._look()
            except CancelledError:
                raise
            except Exception:  # noqa: BLE001  (a bug with one node must not end the watching of all)
                log.failure("looking at clusters failed")

    async def _look(self) -> None:
        try:
            nodes = await all_nodes(self._engine)
            for node in nodes:
                if node.runs and self._is_wanted(node.cluster):
                    await self._attach(node)
            there = {"", *(node.id for node in nodes), *(node.cluster for node in nodes)}
            self._said = {about: said for about, said in self._said.items() if about[0] in there}
            for network in await leave_networks(self._engine, self._addresses, self._needs_network):
                self._say(f"left the network {network}, in which no attached node is any more")
        except EngineUnavailable:
            pass  # the daemon's `EngineWatch` logs it
        except EngineError as error:
            self._tell("", f"the engine does not tell which nodes there are: {error}")

    def _is_wanted(self, cluster: str) -> bool:
        return any(fnmatchcase(cluster, pattern) for pattern in self._patterns)

    def _needs_network(self, node: ClusterNode) -> bool:
        """Return whether k3dreg has to stay in the networks of an attached node.

        It joins that of a wanted cluster again when this starts.  If it stayed, k3d could not remove the network of a
        cluster that it deletes.
        """
        return node.runs or not self._is_wanted(node.cluster)

    async def _attach(self, node: ClusterNode) -> None:
        try:
            done = await attach(self._engine, self._addresses, node)
        except (CannotAttach, EngineError) as error:
            self._tell(node.id, f"{node.name} is not attached: {error.explained}")
            return
        for note in done.notes:
            self._tell(node.cluster, f"{node.cluster}: {note}", note)
        if done.is_new:
            self._tell(node.id, f"{node.name} is attached to {done.url}")

    def _tell(self, about: str, said: str, note: str = "") -> None:
        """Say a sentence about a node or cluster, unless it was the last one; of notes, each once."""
        if self._said.get((about, note)) != said:
            self._said[about, note] = said
            self._say(said)
