"""What `k3dreg doctor` and `k3dreg link` say of linking, with a linker that links nothing."""

from __future__ import annotations

from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.commands import checks_linking
from k3dreg.commands.checks import OK, WARN, Check
from k3dreg.commands.link import link
from k3dreg.commands.why import parse_image
from k3dreg.docker.image import ImageStore
from k3dreg.linking.linker import LinkingResult
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.registry.own_names import OwnNames
from tests.fakes.engine import FakeEngine
from tests.fakes.images import make_image
from tests.fakes.linking import FakeLinker, FakeLinkers
from tests.fakes.workers import InlineWorkers

REASON = CannotLink("no helper container runs: authorization denied by plugin")


class LinkingCommandTests(SynchronousTestCase):
    def setUp(self) -> None:
        clock = Clock()
        self.fake = FakeEngine(ImageStore.CLASSIC)
        self.fake.others["/containers/json"] = [{"Id": "1", "Labels": {"k3d.role": "agent"}}]
        self.fake.others["/containers/1/json"] = {"Name": "/agent-1", "State": {"Pid": 1}}
        self.engine = self.fake.client(clock)
        self.workers = InlineWorkers(clock)
        self.linker = FakeLinker()
        self.linkers = FakeLinkers(self.linker)

    def checks(self) -> list[Check]:
        async def make(*_: Any) -> FakeLinkers:
            return self.linkers

        with mock.patch.object(checks_linking, "make_linkers", make):
            work = checks_linking.linking_checks(self.engine, "", self.workers, None)
            found = self.successResultOf(Deferred.fromCoroutine(work))
        self.assertEqual(self.linkers.calls[-1], "close")
        return found

    def link(self, *nodes: str) -> tuple[int, list[str]]:
        said: list[str] = []
        reference = parse_image("app:1")
        work = link(self.engine, self.linkers, self.workers, OwnNames(), reference, nodes, said.append)
        return self.successResultOf(Deferred.fromCoroutine(work)), said

    def test_doctor_says_for_each_node_whether_layers_can_be_linked(self) -> None:
        [check] = self.checks()
        self.assertEqual((check.verdict, check.says), (OK, "layers can be linked into agent-1"))
        self.linker.error = CannotLink("the node uses the snapshotter native, and not overlayfs")
        [check] = self.checks()
        self.assertEqual(check.verdict, WARN)
        self.assertIn("no layers can be linked into agent-1: the node uses the snapshotter native", check.says)
        self.assertIn("docs/linking.md", check.advice)

    def test_doctor_says_why_there_is_no_linker(self) -> None:
        self.linkers.error = REASON
        [check] = self.checks()
        self.assertEqual((check.verdict, check.says), (WARN, f"no layers can be linked: {REASON}"))

    def test_doctor_says_that_no_node_runs(self) -> None:
        self.fake.others["/containers/json"] = []
        [check] = self.checks()
        self.assertEqual((check.verdict, check.says), (OK, "no node of k3d or kind runs in this engine"))

    def test_link_says_what_it_saved_or_why_it_did_nothing(self) -> None:
        self.fake.add(make_image("docker.io/library/app:1"))
        self.linker.done = LinkingResult(layers=2, files=3, saved=2_500_000, seconds=0.5)
        status, [line] = self.link()
        self.assertEqual(status, 0)
        self.assertIn("linked 2 layers, 3 files, 0.5 s, agent-1; 2.5 MB are neither sent", line)
        self.assertEqual(self.link("agent-2")[0], 1)
        self.linkers.error = REASON
        self.assertEqual(self.link(), (1, [f"no layers are linked: {REASON}"]))
