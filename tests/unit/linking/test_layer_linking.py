"""When layers are linked into the node that pulls an image."""

from __future__ import annotations

import json
from typing import Any, cast

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.engine_files.layout import chain_ids
from k3dreg.linking.layer_linking import LayerLinking
from k3dreg.linking.linker import LinkingResult
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown, EngineUnavailable
from k3dreg.oci.manifest import make_image_manifest
from k3dreg.oci.reference import Repository
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.pulled_repositories import PulledRepositories
from k3dreg.reporting.activity import Activity, LinkedLayers
from k3dreg.reporting.observer import NullObserver
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.memory_blob import MemoryBlob
from tests.fakes.documents import Requests
from tests.fakes.linking import FakeLinker, FakeLinkers
from tests.fakes.logs import heard
from tests.fakes.workers import ManualWorkers

DIFF_IDS = [Digest.of(b"one"), Digest.of(b"two")]
CONFIG = json.dumps({"rootfs": {"diff_ids": list(map(str, DIFF_IDS))}}).encode()
ADDRESS = "172.18.0.3"
SUBJECT = f"docker.io/library/app for {ADDRESS}"
REPOSITORY = Repository.parse("app", "docker.io")
LISTED = {"Id": "2", "Labels": {"k3d.role": "agent"}, "NetworkSettings": {"Networks": {"n": {"IPAddress": ADDRESS}}}}
AGENT = {"Name": "/agent-0", "State": {"Pid": 42}}


class Observer(NullObserver):
    def __init__(self) -> None:
        self.ends: list[tuple[str, str, int, str]] = []
        self.linked: list[LinkedLayers | None] = []

    def ended(self, activity: Activity, seconds: float, refusal: str) -> None:
        self.ends.append((activity.kind, activity.subject, activity.progress().done, refusal))
        self.linked.append(activity.linked)


class LayerLinkingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.workers = ManualWorkers(self.clock)
        self.linker = FakeLinker()
        self.linkers = FakeLinkers(self.linker)
        self.observer = Observer()
        self.engine = Requests([LISTED], AGENT)
        self.pulled = PulledRepositories(OwnNames())
        self.linking = LayerLinking(
            self.engine, self.linkers, self.workers, cast(Any, self.clock), self.pulled.add, self.observer
        )
        self.linking.enable(True)
        self.workers.work_all()
        self.trace = Trace(client=ADDRESS, node_waits_until=18.0)
        self.config = CONFIG

    def before_answer(self, trace: Trace | None = None, media_type: str = "", **asked: object) -> Deferred[None]:
        config = Descriptor("", Digest.of(self.config), len(self.config))
        root, data = make_image_manifest(config, [Descriptor("", each, 10) for each in DIFF_IDS])
        if media_type:
            root = evolve(root, media_type=media_type)

        async def read(repository: Repository, digest: Digest, trace: Trace) -> IBlob:
            if digest != config.digest:
                raise BlobUnknown("no")
            return MemoryBlob(digest, self.config)

        async def open_it() -> IBlob:
            return MemoryBlob(root.digest, data, root.media_type)

        self.engine.answers = list(cast(Any, asked.get("answers", [[LISTED], AGENT])))
        served = ServedManifest(root, open_it)
        work = self.linking.before_answer(served, REPOSITORY, read, trace or self.trace)
        return Deferred.fromCoroutine(work)

    def test_layers_are_linked_before_a_nodes_manifest_is_answered(self) -> None:
        answer = self.before_answer()
        self.assertNoResult(answer)
        self.workers.work_all()
        self.successResultOf(answer)
        self.assertEqual(self.linker.linked, [("agent-0", "docker.io/library/app", chain_ids(DIFF_IDS))])
        self.assertEqual(self.trace.steps, ["linked 2 layers, 26,390 files, 1.4 s, agent-0"])
        self.assertEqual(self.pulled.nodes_of("app:other"), {"2": "docker.io/library/app"})
        self.assertEqual(self.observer.ends, [("link", "docker.io/library/app into agent-0", 1000, "")])
        seen = LinkedLayers("agent-0", 2, 0, 1000)
        self.assertEqual((self.trace.linked, self.trace.not_linked, self.observer.linked), (seen, "", [seen]))

    def test_one_layer_is_no_layers(self) -> None:
        self.linker.done = LinkingResult(layers=1, files=1)
        answer = self.before_answer()
        self.workers.work_all()
        self.successResultOf(answer)
        self.assertEqual(self.trace.steps, ["linked 1 layer, 1 files, 0.0 s, agent-0"])

    def test_where_the_node_has_all_the_line_says_nothing(self) -> None:
        self.linker.done = LinkingResult(there=2)
        with heard() as lines:
            answer = self.before_answer()
            self.workers.work_all()
        self.successResultOf(answer)
        self.assertEqual((self.trace.steps, lines), ([], []))

    def test_nothing_is_asked_without_the_option(self) -> None:
        self.linking.enable(False)
        self.engine.asked.clear()
        self.successResultOf(self.before_answer())
        self.assertEqual(self.engine.asked, [])

    def test_nothing_is_linked_for_an_index_or_for_a_head(self) -> None:
        self.engine.asked.clear()
        self.successResultOf(self.before_answer(media_type=media_types.OCI_INDEX))
        self.successResultOf(self.before_answer(Trace(client=ADDRESS)))
        self.assertEqual(self.engine.asked, [])

    def test_nothing_is_linked_for_a_client_that_is_no_node(self) -> None:
        trace = Trace(client="172.18.0.9", node_waits_until=18.0)
        with heard() as lines:
            self.successResultOf(self.before_answer(trace))
        self.assertEqual((self.linker.linked, lines), ([], []))
        self.assertEqual(trace.not_linked, "no node of k3d or kind in this Docker has the address 172.18.0.9")

    def test_nothing_is_linked_for_what_is_no_image(self) -> None:
        for config in (b"{}", b"no JSON", json.dumps({"rootfs": {"diff_ids": [str(DIFF_IDS[0])]}}).encode()):
            self.config = config
            answer = self.before_answer()
            self.workers.work_all()
            self.successResultOf(answer)
        self.assertEqual(self.linker.linked, [])

    def test_an_error_is_logged_and_the_manifest_is_answered(self) -> None:
        errors = [CannotLink("Docker runs rootless"), ValueError("a defect")]
        for error in errors:
            self.linker.error = error
            with heard() as lines:
                answer = self.before_answer()
                self.workers.work_all()
                self.successResultOf(answer)
            self.assertEqual(len(lines), 1)
            said = "no layers are linked: Docker runs rootless" if error is errors[0] else "linking failed"
            self.assertIn(f"docker.io/library/app for {ADDRESS}: {said}", lines[0])
            self.assertEqual(self.trace.not_linked, str(error) if error is errors[0] else "an error in k3dreg")
        self.flushLoggedErrors(ValueError)
        self.assertEqual([refusal for *_, refusal in self.observer.ends], ["CannotLink", "ValueError"])

    def test_an_engine_that_is_away_is_logged_and_the_manifest_is_answered(self) -> None:
        with heard() as lines:
            self.successResultOf(self.before_answer(answers=[EngineUnavailable("Docker is down")]))
        self.assertEqual(len(lines), 1)
        self.assertIn("Docker is down", lines[0])

    def test_layers_that_docker_has_not_unpacked_are_told(self) -> None:
        self.linker.done = LinkingResult(missing=2)
        with heard() as lines:
            answer = self.before_answer()
            self.workers.work_all()
            self.successResultOf(answer)
        self.assertEqual(len(lines), 1)
        self.assertIn("Docker has not unpacked 2 layers", lines[0])
        self.assertEqual(self.trace.not_linked, "Docker has not unpacked 2 layers")

    def test_the_manifest_is_answered_in_time(self) -> None:
        with heard() as lines:
            answer = self.before_answer()
            self.clock.advance(15.9)
            self.assertNoResult(answer)
            self.clock.advance(0.2)
            self.successResultOf(answer)
        self.assertIn("linking takes longer than the node waits", lines[0])
        self.assertEqual(self.trace.not_linked, "it takes longer than the node waits")

    def test_no_linking_begins_when_the_time_is_nearly_over(self) -> None:
        self.engine.asked.clear()
        self.successResultOf(self.before_answer(Trace(client=ADDRESS, node_waits_until=1.5)))
        self.assertEqual(self.engine.asked, [])

    def test_two_requests_share_a_linking(self) -> None:
        first, second = self.before_answer(), self.before_answer(Trace(client=ADDRESS, node_waits_until=18.0))
        self.workers.work_all()
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(len(self.linker.linked), 1)

    def test_a_client_that_leaves_cancels_its_own_wait_only(self) -> None:
        first, second = self.before_answer(), self.before_answer(Trace(client=ADDRESS, node_waits_until=18.0))
        self.workers.work()  # the config of the first
        self.workers.work()
        first.cancel()
        self.failureResultOf(first)
        self.workers.work_all()
        self.successResultOf(second)
        self.assertEqual(len(self.linker.linked), 1)

    def test_at_a_stop_the_work_stops_before_its_next_step(self) -> None:
        answer = self.before_answer()
        self.workers.work()  # the config
        self.successResultOf(Deferred.fromCoroutine(self.linking.shutdown()))
        self.workers.work_all()
        self.assertEqual(self.linker.linked, [])
        self.failureResultOf(answer)

    def test_what_an_earlier_run_left_is_removed_once(self) -> None:
        self.assertEqual(self.linker.cleaned, ["agent-0"])
        self.linking.enable(False)
        self.linking.enable(True)
        self.workers.work_all()
        self.assertEqual(self.linker.cleaned, ["agent-0"])

    def test_each_new_linker_removes_what_the_one_before_left(self) -> None:
        self.linkers.linker = later = FakeLinker()
        for _ in range(2):
            answer = self.before_answer(answers=[[LISTED], AGENT, [LISTED], AGENT])
            self.workers.work_all()
            self.successResultOf(answer)
        self.assertEqual((self.linker.cleaned, later.cleaned), (["agent-0"], ["agent-0"]))
        self.assertEqual(len(later.linked), 2)

    def test_the_linker_is_there_before_the_first_pull_and_ends_with_the_option(self) -> None:
        self.assertEqual(self.linkers.calls, ["get"])
        self.linking.enable(True)
        self.assertEqual(self.linkers.calls, ["get"])
        self.linking.enable(False)
        self.assertEqual(self.linkers.calls, ["get", "close", "remove left"])
        self.linking.enable(True)
        self.successResultOf(Deferred.fromCoroutine(self.linking.shutdown()))
        self.assertEqual(self.linkers.calls, ["get", "close", "remove left", "get", "close"])

    def test_a_daemon_that_starts_without_the_option_removes_what_a_killed_one_left(self) -> None:
        linkers = FakeLinkers(self.linker)
        linking = LayerLinking(self.engine, linkers, self.workers, cast(Any, self.clock), self.pulled.add)
        linking.enable(False)
        self.assertEqual(linkers.calls, ["close", "remove left"])

    def test_why_there_is_no_linker_is_said_at_once_and_for_each_pull(self) -> None:
        self.linkers.error = CannotLink("Docker has no image k3dreg")
        self.linking.enable(False)
        with heard() as lines:
            self.linking.enable(True)
            answer = self.before_answer()
            self.workers.work_all()
            self.successResultOf(answer)
        said = "no layers are linked: Docker has no image k3dreg"
        self.assertEqual(lines, ["no layers can be linked: Docker has no image k3dreg", f"{SUBJECT}: {said}"])

    def test_a_linker_that_comes_after_the_option_is_off_is_ended(self) -> None:
        answer = self.before_answer()
        self.linking.enable(False)
        self.linkers.calls.clear()
        with heard() as lines:
            self.workers.work_all()
            self.successResultOf(answer)
        self.assertEqual(self.linkers.calls, ["get", "close"])
        self.assertEqual((self.linker.linked, len(lines)), ([], 1))
        self.assertIn("linking was turned off", lines[0])
