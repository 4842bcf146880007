"""Record which pushed image each node has pulled last, so that rules do not remove it."""

from __future__ import annotations

from collections.abc import Mapping

from cachetools import LRUCache
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from k3dreg.clusters.cluster_nodes import nodes_by_address
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError, StoreError
from k3dreg.oci.reference import Repository
from k3dreg.registry.own_names import OwnNames
from k3dreg.reporting.logger import make_logger
from k3dreg.store.interfaces import IPushed

log = make_logger()

# Clients and repositories of which the last pull is kept in memory.
_PULLS = 10_000
# Seconds after which the same pull is recorded again: another node may have got the client's address.
_AGAIN = 3600.0


class NodePulls:
    """Records the manifest that each node has requested last of each pushed repository.

    A node is a container of the engine.  It is known by its address, so a node behind a gateway is not.
    Recording delays no answer.  Call `stop` at the end.
    """

    def __init__(self, engine: IEngineRequests, pushed: IPushed, names: OwnNames, clock: IReactorTime) -> None:
        self._engine = engine
        self._pushed = pushed
        self._names = names
        self._clock = clock
        self._known: LRUCache[tuple[str, Repository], tuple[Digest, float]] = LRUCache(_PULLS)
        # By client and repository, what is not recorded yet.
        self._waiting: dict[tuple[str, Repository], Digest] = {}
        self._recording: Deferred[None] | None = None
        self._is_recording = False

    def seen(self, client: str, repository: Repository, digest: Digest) -> None:
        """Record, soon, that the client at an address has requested a pushed manifest."""
        key, now = (client, self._names.own(repository)), self._clock.seconds()
        known, at = self._known.get(key, (None, 0.0))
        if known == digest and 0 <= now - at < _AGAIN:
            return
        self._known[key] = digest, now
        self._waiting[key] = digest
        if not self._is_recording:
            self._is_recording = True
            self._recording = Deferred.fromCoroutine(self._record())
            self._recording.addErrback(_failed)

    def stop(self) -> None:
        """Record nothing more."""
        if self._recording is not None:
            self._recording.cancel()

    async def _record(self) -> None:
        """Record what waits, and what comes meanwhile, with one question to the engine for all that waits."""
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, {}
                await self._record_all(waiting)
        finally:
            self._is_recording = False

    async def _record_all(self, waiting: Mapping[tuple[str, Repository], Digest]) -> None:
        try:
            nodes = await nodes_by_address(self._engine)
            pulls = {
                (repository, nodes[client].id): digest
                for (client, repository), digest in waiting.items()
                if client in nodes
            }
            if pulls:
                await self._pushed.record_node_pulls(pulls)
        except (EngineError, StoreError) as error:
            log.debug("which nodes have pulled pushed images was not recorded: {error}", error=error)
            for key in waiting:
                self._known.pop(key, None)


def _failed(failure: Failure) -> None:
    if not failure.check(CancelledError):
        log.failure("which nodes have pulled pushed images was not recorded", failure=failure)
