"""Which pushed image each node has pulled last is recorded, and costs little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.clusters.cluster_nodes import existing_containers
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineUnavailable
from k3dreg.oci.reference import Repository
from k3dreg.registry.node_pulls import NodePulls
from k3dreg.registry.own_names import OwnNames
from k3dreg.store.interfaces import IPushed
from tests.fakes.documents import Requests
from tests.unit.clusters.test_cluster_nodes import LIST

APP, NAMED = Repository(None, "app"), Repository("localhost:5005", "app")
ONE, TWO = Digest.of(b"1"), Digest.of(b"2")
SERVER, AGENT, REGISTRY = "172.18.0.2", "172.18.0.3", "172.18.0.4"


class Recorded:
    """The part of `IPushed` that records what nodes pull."""

    def __init__(self) -> None:
        self.calls: list[dict[tuple[str, str], Digest]] = []

    async def record_node_pulls(self, pulls: Mapping[tuple[Repository, str], Digest]) -> None:
        self.calls.append({(str(repository), node): digest for (repository, node), digest in pulls.items()})


class Waiting:
    """An engine that answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Deferred[Any]] = []

    def request(self, *arguments: object, **more: object) -> Deferred[Any]:
        self.asked.append(Deferred())
        return self.asked[-1]


class NodePullTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.recorded = Recorded()

    def use(self, engine: object) -> None:
        names = OwnNames(["localhost:5005"])
        pushed = cast(IPushed, self.recorded)
        self.pulls = NodePulls(cast(IEngineRequests, engine), pushed, names, self.clock)

    def test_a_pull_by_a_node_is_recorded_under_whichever_own_name(self) -> None:
        self.use(Requests(LIST, LIST))
        self.pulls.seen(AGENT, NAMED, ONE)
        self.pulls.seen(SERVER, APP, TWO)
        self.assertEqual(self.recorded.calls, [{("app", "2"): ONE}, {("app", "1"): TWO}])

    def test_other_clients_are_no_nodes(self) -> None:
        self.use(Requests(LIST, LIST))
        self.pulls.seen(REGISTRY, APP, ONE)
        self.pulls.seen("127.0.0.1", APP, ONE)
        self.assertEqual(self.recorded.calls, [])

    def test_the_engine_is_asked_once_an_hour_for_the_same_pull(self) -> None:
        engine = Requests(LIST, LIST, LIST)
        self.use(engine)
        for _ in range(10):
            self.pulls.seen(AGENT, APP, ONE)
        self.assertEqual(len(engine.asked), 1)
        self.pulls.seen(AGENT, APP, TWO)
        self.clock.advance(3600)
        self.pulls.seen(AGENT, APP, TWO)
        self.assertEqual(self.recorded.calls, [{("app", "2"): digest} for digest in (ONE, TWO, TWO)])

    def test_what_comes_while_the_engine_is_slow_is_one_question_and_the_last_pull_counts(self) -> None:
        engine = Waiting()
        self.use(engine)
        self.pulls.seen(SERVER, APP, ONE)
        for digest in (ONE, TWO):
            self.pulls.seen(AGENT, APP, digest)
        self.assertEqual(len(engine.asked), 1)
        engine.asked[0].errback(EngineUnavailable("gone"))
        self.assertEqual(len(engine.asked), 2)
        self.assertEqual(list(self.pulls._known), [(AGENT, APP)])
        self.pulls.stop()
        self.assertTrue(engine.asked[1].called)  # cancelled
        self.assertEqual(self.recorded.calls, [])

    def test_all_containers_exist_also_those_that_are_stopped_and_none_are_known_without_an_engine(self) -> None:
        engine = Requests(LIST, EngineUnavailable("gone"))
        found = self.successResultOf(Deferred.fromCoroutine(existing_containers(engine)))
        self.assertEqual(found, {"1", "2", "3", "4"})
        self.assertEqual(engine.asked[0][1]["all"], "1")
        self.assertIsNone(self.successResultOf(Deferred.fromCoroutine(existing_containers(engine))))
