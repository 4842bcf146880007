"""Images that are linked into nodes before a pod asks for them."""

from __future__ import annotations

from typing import Any, cast

from k3dreg.clusters.nodes import Node
from k3dreg.docker.image import ImageStore
from k3dreg.engine_files.layout import chain_ids
from k3dreg.linking.layer_linking import LayerLinking
from k3dreg.linking.linker import LinkingResult
from k3dreg.linking.linkers import LinkersHere
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.oci.reference import Repository
from k3dreg.registry.advance_linking import AdvanceLinking
from k3dreg.registry.own_name_discovery import EngineImageNames
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.pulled_repositories import PulledRepositories
from tests.fakes.engine import FakeEngine
from tests.fakes.images import FakeImage, make_image
from tests.fakes.linking import FakeLinker
from tests.fakes.logs import heard
from tests.fakes.stores import StoreTestCase
from tests.fakes.workers import InlineWorkers

APP = Repository.parse("app", "docker.io")


def listed(identity: str) -> dict[str, object]:
    return {"Id": identity, "Labels": {"k3d.role": "agent"}}


class AdvanceLinkingTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.fake = FakeEngine(ImageStore.CLASSIC)
        self.nodes("1", "2")
        engine = self.fake.client(self.clock)
        self.linker = FakeLinker()
        workers = InlineWorkers(self.clock)
        self.pulled = PulledRepositories(OwnNames())
        linking = LayerLinking(engine, LinkersHere(self.linker), workers, cast(Any, self.clock), self.pulled.add)
        linking.enable(True)
        self.advance = AdvanceLinking(engine, EngineImageNames(engine, workers), self.pulled, linking, self.clock)
        self.advance.enable(True)
        self.addCleanup(self.advance.stop)

    def nodes(self, *identities: str) -> None:
        self.fake.others["/containers/json"] = [listed(each) for each in identities]
        for each in identities:
            self.fake.others[f"/containers/{each}/json"] = {"Name": f"/agent-{each}", "State": {"Pid": 1}}

    def pulls(self, identity: str, repository: Repository = APP) -> None:
        self.pulled.add(Node(identity, "", 1, ""), repository)

    def image(self, tag: str, name: str = "app") -> FakeImage:
        return self.fake.add(make_image(f"docker.io/library/{name}:{tag}", labels={"tag": tag}))

    def linked(self) -> list[tuple[str, str]]:
        return [(node, repository) for node, repository, _ in self.linker.linked]

    def test_a_new_image_is_linked_into_the_nodes_that_have_pulled_from_its_repository(self) -> None:
        self.image("1")
        self.pulls("2")
        with heard() as lines:
            image = self.image("2")
        self.assertEqual(
            self.linker.linked[-1],
            ("agent-2", "docker.io/library/app", chain_ids([layer.diff_id for layer in image.best.layers])),
        )
        self.assertIn("app:2, before a pod asks for it: linked 2 layers, 26,390 files, 1.4 s, agent-2", lines[-1])

    def test_other_repositories_are_not_linked(self) -> None:
        self.pulls("2")
        self.image("1", "other")
        self.assertEqual(self.linked(), [])

    def test_an_image_is_linked_once(self) -> None:
        self.pulls("2")
        image = self.image("1")
        self.fake.tag(image.name, "docker.io/library/app:again")
        self.assertEqual(self.linked(), [("agent-2", "docker.io/library/app")])

    def test_a_linking_that_failed_is_logged_and_tried_at_the_next_event(self) -> None:
        self.pulls("2")
        self.linker.error = CannotLink("the disk is full")
        with heard() as lines:
            image = self.image("1")
        self.assertIn("app:1 is not linked into agent-2 in advance: the disk is full", lines[-1])
        self.linker.error = None
        self.fake.tag(image.name, "docker.io/library/app:again")
        self.assertEqual(len(self.linked()), 2)

    def test_a_defect_does_not_end_it(self) -> None:
        self.pulls("2")
        self.linker.error = ValueError("a defect")
        self.image("1")
        self.flushLoggedErrors(ValueError)
        self.linker.error = None
        image = self.image("2")
        chain = chain_ids([layer.diff_id for layer in image.best.layers])
        self.assertIn(chain, [linked for _, _, linked in self.linker.linked])

    def test_a_node_that_is_gone_is_left_out(self) -> None:
        self.pulls("1")
        self.pulls("2")
        self.nodes("1")
        self.image("1")
        self.assertEqual(self.linked(), [("agent-1", "docker.io/library/app")])

    def test_what_was_linked_before_costs_no_line(self) -> None:
        self.pulls("2")
        self.linker.done = LinkingResult(there=3)
        with heard() as lines:
            self.image("1")
        self.assertEqual(lines, [])

    def test_nothing_is_linked_after_the_option_is_off(self) -> None:
        self.pulls("2")
        self.advance.enable(False)
        self.image("1")
        self.assertEqual(self.linked(), [])
        self.advance.enable(True)
        self.assertEqual(self.linked(), [("agent-2", "docker.io/library/app")])
