"""Metrics, the board, and what comes of the engine: what is told is what is shown."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from attrs import evolve
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.config.retention import parse_rule
from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.docker.images import parse_list
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ManifestUnknown
from k3dreg.oci.reference import Repository, Tag
from k3dreg.reporting.activity import Activity, Progress, RequestReport
from k3dreg.reporting.observer import observed
from k3dreg.status.board import Board, Observers
from k3dreg.status.metrics import Metrics, Readings
from k3dreg.status.monitor import Monitor, listed
from k3dreg.status.overview import Listed, ListedNode, NodeCounts, Saved, SourceState
from k3dreg.store.interfaces import PushedManifest, PushedUsage
from k3dreg.store.pushed import PushedContent
from tests.fakes.containers import FakeContainer
from tests.fakes.databases import open_database
from tests.fakes.engine import FakeEngine
from tests.fakes.workers import InlineWorkers

T = TypeVar("T")

REPORT = RequestReport("0" * 16, 100.0, "127.0.0.1", "GET", "blob", "x blob", 200, 1000, 2.0, 0.5, source="cache")


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample by name and labels, as Prometheus reads them."""
    return {
        f"{sample.name}{sorted(sample.labels.values())}" if sample.labels else sample.name: sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_a_known_sequence_gives_known_numbers() -> None:
    metrics = Metrics("1", lambda: Readings(10, 20, 3, 4, 5))
    metrics.answered(REPORT)
    metrics.answered(evolve(REPORT, sent=24, source="export"))
    metrics.answered(evolve(REPORT, route="manifest", status=404, refusal="ManifestUnknown", source="", sent=50))
    metrics.answered(evolve(REPORT, aborted=True, refusal="DigestMismatch", sent=7))
    metrics.answered(evolve(REPORT, method="PUT", route="upload", status=201, sent=0, source=""))
    found = samples(metrics)
    assert found["k3dreg_requests_total['200', 'GET', 'blob']"] == 3
    assert found["k3dreg_requests_total['404', 'GET', 'manifest']"] == 1
    assert found["k3dreg_requests_total['201', 'PUT', 'upload']"] == 1
    assert found["k3dreg_sent_bytes_total['cache']"] == 1007
    assert found["k3dreg_sent_bytes_total['export']"] == 24
    assert found["k3dreg_sent_bytes_total['other']"] == 0
    assert found["k3dreg_content_answers_total['cache']"] == 1
    assert found["k3dreg_refusals_total['ManifestUnknown']"] == 1
    assert found["k3dreg_refusals_total['DigestMismatch']"] == 1
    assert found["k3dreg_aborted_answers_total"] == 1
    assert found["k3dreg_request_duration_seconds_sum['blob']"] == 6
    assert found["k3dreg_response_header_seconds_sum['blob']"] == 1.5
    assert (found["k3dreg_cache_bytes"], found["k3dreg_cache_limit_bytes"], found["k3dreg_cache_blobs"]) == (10, 20, 3)
    assert (found["k3dreg_evicted_blobs_total"], found["k3dreg_evicted_bytes_total"]) == (4, 5)


def test_pulls_and_linked_layers_are_counted_by_node() -> None:
    counts = [NodeCounts("agent-0", {"linked": 2, "failed": 1}, linked=7, saved=900), NodeCounts("other", {"sent": 3})]
    found = samples(Metrics("1", Readings, lambda: counts))
    assert found["k3dreg_pulls_total['agent-0', 'linked']"] == 2
    assert found["k3dreg_pulls_total['agent-0', 'failed']"] == 1
    assert found["k3dreg_pulls_total['agent-0', 'there']"] == 0
    assert found["k3dreg_pulls_total['other', 'sent']"] == 3
    assert found["k3dreg_linked_layers_total['agent-0']"] == 7
    assert found["k3dreg_linked_bytes_total['agent-0']"] == 900


def test_no_client_can_make_a_label() -> None:
    metrics = Metrics("1", Readings)
    before = len(samples(metrics))
    for number in range(50):
        metrics.answered(
            evolve(REPORT, method=f"M{number}", route=f"r{number}", source=f"s{number}", refusal=f"e{number}", status=0)
        )
        metrics.ended(Activity(f"k{number}", "x", 0.0), 1.0, "")
    assert len(samples(metrics)) - before < 80
    assert samples(metrics)["k3dreg_requests_total['other', 'other', 'other']"] == 50


def test_work_is_counted_however_it_ends_and_shown_while_it_goes_on() -> None:
    metrics, clock = Metrics("1", Readings), Clock()
    activity = Activity("pull", "nginx", clock.seconds(), lambda: Progress(7, 9), lambda: 3)
    with observed(metrics, activity, clock):
        clock.advance(4)
        assert samples(metrics)["k3dreg_work_in_progress['pull']"] == 1
        assert samples(metrics)["k3dreg_work_waiters['pull']"] == 3
    for error in (ManifestUnknown("no"), CancelledError()):
        with pytest.raises(type(error)), observed(metrics, Activity("pull", "x", clock.seconds()), clock):
            raise error
    found = samples(metrics)
    assert found["k3dreg_work_in_progress['pull']"] == 0
    assert found["k3dreg_work_waiters['pull']"] == 0
    assert found["k3dreg_work_total['ok', 'pull']"] == 1
    assert found["k3dreg_work_total['failed', 'pull']"] == 1
    assert found["k3dreg_work_total['cancelled', 'pull']"] == 1
    assert found["k3dreg_work_duration_seconds_sum['pull']"] == 4
    assert found["k3dreg_work_bytes_total['pull']"] == 7


def test_promtool_finds_no_fault() -> None:
    promtool = shutil.which("promtool")
    if promtool is None and not os.environ.get("CI"):
        pytest.skip("needs promtool: Debian's prometheus")
    metrics = Metrics("1", Readings, lambda: [NodeCounts("agent-0", {"sent": 1})])
    metrics.engine_up = True
    metrics.answered(evolve(REPORT, refusal="DigestMismatch", aborted=True))
    told = subprocess.run(
        [promtool or "promtool", "check", "metrics"], input=metrics.text(), capture_output=True, check=False, timeout=60
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, b"", b"")


def test_the_board_shows_what_is_under_way_and_what_was_saved() -> None:
    clock = Clock()
    board = Board(clock, node_at)
    observers = Observers([board, Metrics("1", Readings)])
    pull = Activity("pull", "nginx", clock.seconds(), lambda: Progress(50, 100), lambda: 2)
    observers.began(pull)
    clock.advance(3)
    [shown] = board.live().running
    assert (shown.subject, shown.seconds, shown.progress, shown.waiters) == ("nginx", 3, Progress(50, 100), 2)
    observers.ended(pull, 3, "")
    observers.answered(evolve(REPORT, source="registry", sent=11))
    observers.answered(REPORT)
    observers.answered(evolve(REPORT, route="metrics", sent=10**6))
    live = board.live()
    assert live.running == ()
    assert live.saved == Saved(bytes=1000, pulls=0, fetched=61)
    assert [report.sent for report in live.others] == [1000, 11]


async def node_at(address: str) -> str:
    return ""


def test_the_board_forgets() -> None:
    board = Board(Clock(), node_at)
    for number in range(500):
        board.answered(evolve(REPORT, sent=number))
    assert [report.sent for report in board.live().others] == list(range(499, 449, -1))


def test_an_engines_list_of_images_has_a_line_for_each_name() -> None:
    told = [
        {"Id": "sha256:1", "RepoTags": ["b:1", "b:2"], "Size": 5, "Created": 900},
        {"Id": "sha256:2", "RepoTags": ["a:1"], "Size": 6, "Created": 950},
        {"Id": "sha256:0", "RepoTags": ["c:1"], "Size": 7, "Created": 0},
        {"Id": "sha256:3", "RepoTags": ["<none>:<none>"]},
        {"Id": "sha256:4", "RepoTags": None},
        "nonsense",
    ]
    assert listed(parse_list(json.dumps(told).encode()), 1000.0) == [
        Listed("a:1", "sha256:2", 6, 50),
        Listed("b:1", "sha256:1", 5, 100),
        Listed("b:2", "sha256:1", 5, 100),
        Listed("c:1", "sha256:0", 7, None),
    ]
    assert listed(parse_list(b'{"message": "no"}'), 0.0) == []


def digest_of(text: str) -> Digest:
    return Digest.of(text.encode())


def pushed_manifest(text: str, *parts: str) -> PushedManifest:
    descriptor = Descriptor(media_types.OCI_MANIFEST, digest_of(text), 7)
    return PushedManifest(descriptor, frozenset(map(digest_of, parts)))


class MonitorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        workers = InlineWorkers()
        directory = Path(self.mktemp())
        directory.mkdir()
        database = open_database(directory)
        self.addCleanup(database.close)
        self.pushed = PushedContent(database, workers, self.clock)
        self.fake = FakeEngine(ImageStore.CONTAINERD)
        engine = self.fake.client(self.clock)

        async def sources(info: EngineInfo) -> list[SourceState]:
            return [SourceState(info.store.value, "open")]

        self.monitor = Monitor(
            engine,
            self.clock,
            version="1",
            where="unix:///x",
            cache=Readings,
            pushed=self.pushed,
            size_of=lambda digest: 0 if digest == digest_of("absent") else 100,
            sources=sources,
        )

    def done(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def trouble(self) -> str:
        asked = Deferred.fromCoroutine(self.monitor.engine_trouble())
        self.fake.flush()
        return self.successResultOf(asked)

    def test_an_engine_that_goes_and_comes_back_is_told_of(self) -> None:
        self.assertEqual(self.trouble(), "")
        self.fake.down = True
        self.assertEqual(self.trouble(), "", "an answer is good for a second")
        self.clock.advance(1)
        self.assertIn("Docker", self.trouble())
        self.assertIn(b"k3dreg_engine_up 0.0", self.metrics())
        self.fake.down = False
        self.clock.advance(1)
        self.assertIn(b"k3dreg_engine_up 1.0", self.metrics())

    def metrics(self) -> bytes:
        return self.successResultOf(Deferred.fromCoroutine(self.monitor.metrics()))[1]

    def test_an_overview_of_a_working_engine_has_its_sources(self) -> None:
        overview = self.successResultOf(Deferred.fromCoroutine(self.monitor.overview()))
        self.assertEqual(overview.trouble, "")
        self.assertIn("containerd image store", overview.engine)
        self.assertEqual(overview.sources, (SourceState("containerd", "open"),))

    def test_what_was_pushed_is_listed_with_all_that_is_here_of_it_and_since_when(self) -> None:
        app = Repository(None, "app")
        self.done(self.pushed.add_manifest(app, pushed_manifest("amd64", "config", "layer"), []))
        self.done(self.pushed.add_manifest(app, pushed_manifest("index", "amd64", "absent"), [Tag("b")]))
        self.clock.advance(60)
        self.done(self.pushed.add_manifest(app, pushed_manifest("one", "layer"), [Tag("a")]))
        overview = self.done(self.monitor.overview())
        self.assertEqual(
            overview.pushed,
            (
                Listed("app:a", str(digest_of("one")), 200, 0),
                Listed("app:b", str(digest_of("index")), 400, 60),
            ),
        )
        self.assertEqual(overview.pushed_count, 2)
        self.assertEqual(overview.pushed_use, PushedUsage(21))
        self.clock.advance(10**6)
        self.monitor.retain([parse_rule("*=1")])
        self.assertEqual(self.done(self.monitor.overview()).pushed_use, PushedUsage(21, 1, 14))

    def test_an_overview_has_the_clusters_nodes(self) -> None:
        labels = {"k3d.cluster": "dev", "k3d.role": "server"}
        self.fake.containers.add(FakeContainer("k3d-dev-server-0", labels, networks={"k3d-dev": []}))
        overview = self.successResultOf(Deferred.fromCoroutine(self.monitor.overview()))
        self.assertEqual(overview.clusters, (ListedNode("dev", "k3d-dev-server-0", "not attached", False),))

    def test_an_overview_without_an_engine_says_why(self) -> None:
        self.fake.down = True
        overview = self.successResultOf(Deferred.fromCoroutine(self.monitor.overview()))
        self.assertTrue(overview.trouble)
        self.assertEqual((overview.engine, overview.images), ("", ()))


def test_k3dregs_own_helper_images_are_not_listed() -> None:
    helper = f"k3dreg-reader:0123abcd-{'0' * 32}"
    told = [{"Id": f"sha256:{'1' * 64}", "RepoTags": [helper, "app:1"], "Size": 1, "Created": 0}]
    assert [each.name for each in listed(parse_list(json.dumps(told).encode()), 0.0)] == ["app:1"]
