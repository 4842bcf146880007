"""Requests become pulls: which belong together, when a pull is over, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.template import Tag

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.reference import Repository
from k3dreg.reporting.activity import Activity, LinkedLayers, Progress
from k3dreg.status.board import Board
from k3dreg.status.overview import SeenPull
from k3dreg.status.pulls import QUIET
from k3dreg.status.status_page import flatten, nodes, pulls, under_way
from tests.fakes.logs import heard
from tests.fakes.pulls import APP, Client, Image, layer

NODES = {"10.0.0.1": "agent-0", "10.0.0.2": "agent-1"}
NAME = "registry.example/team/app"


async def node_at(address: str) -> str:
    return NODES.get(address, "")


class PullCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.make(node_at)

    def make(self, node_at: Callable[[str], Awaitable[str]]) -> None:
        self.board = Board(self.clock, node_at)
        self.client = Client(self.board, self.clock)

    def pulls(self) -> list[SeenPull]:
        """The pulls that are over, the oldest first."""
        self.assertEqual(self.board.live().pulling, ())
        return list(reversed(self.board.live().pulls))

    def quiet(self) -> list[str]:
        """Return the lines of the pulls that are over after a silence."""
        with heard() as lines:
            self.clock.pump([1.0] * int(QUIET + 1))
        self.assertEqual(self.board.live().pulling, ())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return lines


class OverTests(PullCase):
    def test_a_pull_is_over_when_all_that_its_manifest_lists_was_sent(self) -> None:
        for image in (Image("a", "b"), Image("c", "d", several=True)):
            with heard() as lines:
                self.client.pull("1", image)
            self.assertEqual(lines, [f"{NAME}:1 to agent-0: 2 layers sent (2.0 kB), 1.5 s"])
        first, second = self.pulls()
        self.assertEqual((first.sent, first.there, first.way, len(first.requests)), (2, 0, "sent", 5))
        self.assertEqual((second.sent, len(second.requests)), (2, 6))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.board.live().others, ())

    def test_layers_that_the_node_never_asks_for_were_there(self) -> None:
        image = Image("a", "b", "c")
        self.client.pull("1", image, image.layers[2:])
        self.assertEqual(self.quiet(), [f"{NAME}:1 to agent-0: 1 layer sent (1.0 kB), 2 there already, 1.0 s"])

    def test_a_node_that_has_everything_sends_a_head_only(self) -> None:
        self.client.head("1", Image("a").root)
        self.assertEqual(self.quiet(), [f"{NAME}:1 to agent-0: nothing to send, 0.0 s"])
        self.assertEqual([pull.way for pull in self.pulls()], ["there"])

    def test_layers_that_were_linked_need_not_be_sent(self) -> None:
        image = Image("a", "b", "c", "d")
        with heard() as lines:
            self.client.manifests("1", image, LinkedLayers("agent-0", 2, 1, 7000))
            self.client.blob(image.config)
            self.clock.advance(1)
            self.client.blob(image.layers[3])
        self.assertEqual(lines, [f"{NAME}:1 to agent-0: 2 layers linked, 1 sent (1.0 kB), 1 there already, 1.0 s"])
        [pull] = self.pulls()
        self.assertEqual((pull.way, pull.saved), ("linked and sent", 7000))

    def test_with_all_layers_linked_it_is_over_after_the_config(self) -> None:
        image = Image("a", "b")
        with heard() as lines:
            self.client.manifests("1", image, LinkedLayers("agent-0", 2, 0, 7000))
            self.client.blob(image.config)
        self.assertEqual(lines, [f"{NAME}:1 to agent-0: 2 layers linked, 0.0 s"])

    def test_why_no_layers_were_linked_is_said(self) -> None:
        image = Image("a")
        self.client.get("1", image.root, image.contents, not_linked="another file system")
        self.client.blob(image.config)
        with heard() as lines:
            self.client.blob(image.layers[0])
        self.assertEqual(
            lines, [f"{NAME}:1 to agent-0: 1 layer sent (1.0 kB), 0.0 s (not linked: another file system)"]
        )

    def test_a_manifest_too_large_to_note_is_over_after_a_silence(self) -> None:
        image = Image("a")
        self.client.head("1", image.root)
        self.client.get(str(image.root.digest), image.root, None)
        self.client.blob(image.config)
        self.client.blob(image.layers[0])
        self.assertEqual(self.quiet(), [f"{NAME}:1 to agent-0: 2 blobs sent (1.0 kB), 0.0 s"])

    def test_a_pull_goes_on_as_long_as_a_request_does(self) -> None:
        waiting = self.client.begin("HEAD", "1")
        self.clock.pump([10.0] * 6)
        [pull] = self.board.live().pulling
        self.assertEqual((pull.seconds, pull.waiting), (60, (f"HEAD {NAME}:1",)))
        self.client.end(waiting, manifest=Image("a").root)
        self.assertEqual(self.quiet(), [f"{NAME}:1 to agent-0: nothing to send, 60.0 s"])

    def test_a_client_that_is_no_node_is_named_by_its_address(self) -> None:
        self.client.address = "127.0.0.1"
        self.client.head("1", Image("a").root)
        self.assertEqual(self.quiet(), [f"{NAME}:1 to 127.0.0.1: nothing to send, 0.0 s"])

    def test_the_line_waits_for_the_look_up_of_the_node_and_the_answer_does_not(self) -> None:
        found: Deferred[str] = Deferred()

        async def look() -> str:
            return await found

        self.make(lambda address: look())
        with heard() as lines:
            self.client.pull("1", Image("a"))
            self.assertEqual(lines, [])
            self.assertEqual([pull.who for pull in self.pulls()], ["10.0.0.1"])
            found.callback("agent-0")
        self.assertEqual(lines, [f"{NAME}:1 to agent-0: 1 layer sent (1.0 kB), 1.0 s"])
        self.assertEqual([pull.who for pull in self.pulls()], ["agent-0"])

    def test_pulls_whose_look_ups_take_long_are_bounded_too(self) -> None:
        self.make(lambda address: Deferred())
        with heard() as lines:
            for number in range(300):
                self.client.pull(str(number), Image("a"))
        self.assertEqual(len(lines), 100)
        self.board.shutdown()

    def test_a_stop_ends_pulls_and_look_ups(self) -> None:
        found: Deferred[str] = Deferred()

        async def look() -> str:
            return await found

        self.make(lambda address: look())
        self.client.begin("HEAD", "1")
        with heard() as lines:
            self.board.shutdown()
        self.assertEqual(lines, [f"{NAME}:1 to 10.0.0.1: nothing to send, 0.0 s"])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class FailureTests(PullCase):
    def test_a_refusal_is_the_outcome_with_its_reason(self) -> None:
        refused = self.client.begin("HEAD", "9")
        self.client.end(refused, 404, reason="manifest unknown")
        [pull] = self.board.live().pulling
        self.assertEqual((pull.status, pull.reason), (404, "manifest unknown"))
        self.assertEqual(self.quiet(), [f"{NAME}:9 to agent-0: failed after 0.0 s with 404: manifest unknown"])
        self.assertEqual([pull.way for pull in self.pulls()], ["failed"])

    def test_requests_that_are_repeated_with_success_are_no_failure(self) -> None:
        image = Image("a")
        self.client.end(self.client.begin("HEAD", "1"), 401)
        self.client.end(self.client.begin("HEAD", "1"), 503, reason="Docker is pulling")
        self.clock.advance(5)
        self.client.manifests("1", image)
        self.client.blob(image.config)
        self.client.blob(image.layers[0], aborted=True, sent=300)
        with heard() as lines:
            self.client.blob(image.layers[0], 206, sent=700)
        self.assertEqual(lines, [f"{NAME}:1 to agent-0: 1 layer sent (1.0 kB), 5.0 s"])
        self.assertEqual(len(self.pulls()[0].requests), 7)

    def test_a_client_that_leaves(self) -> None:
        image = Image("a", "b")
        self.client.pull("1", image, image.layers[:1])
        self.client.blob(image.layers[1], 499, reason="the client disconnected in the middle of the answer", sent=500)
        self.assertEqual(
            self.quiet(),
            [
                f"{NAME}:1 to agent-0: 1 layer sent (1.5 kB), failed after 1.0 s with 499: "
                "the client disconnected in the middle of the answer"
            ],
        )

    def test_a_body_that_breaks_off(self) -> None:
        image = Image("a")
        self.client.manifests("1", image)
        self.client.blob(image.config)
        self.client.blob(image.layers[0], aborted=True, sent=500, reason="wrong bytes")
        self.assertEqual(self.quiet(), [f"{NAME}:1 to agent-0: failed after 0.0 s: wrong bytes"])

    def test_a_node_that_learns_elsewhere_what_the_tag_means_goes_on_with_the_pull(self) -> None:
        image = Image("a")
        self.client.end(self.client.begin("HEAD", "1"), 404, reason="unknown")
        self.client.end(self.client.begin("GET", str(image.manifest.digest)), 404, reason="no such manifest")
        self.client.blob(image.config, 404, reason="no such blob")
        self.assertEqual(self.quiet(), [f"{NAME}:1 to agent-0: failed after 0.0 s with 404: no such blob"])
        self.client.end(self.client.begin("HEAD", "2"), 404)
        self.client.get(str(image.manifest.digest), image.manifest, image.contents)
        self.client.blob(image.config)
        self.client.blob(image.layers[0])
        self.assertEqual([pull.way for pull in self.pulls()], ["failed", "sent"])

    def test_a_node_that_has_the_manifests_of_an_earlier_try_asks_for_blobs_only(self) -> None:
        image = Image("a", "b")
        self.client.head("1", image.root)
        self.client.blob(image.layers[1])
        self.assertEqual(self.quiet(), [f"{NAME}:1 to agent-0: 1 blob sent (1.0 kB), 0.0 s"])


class GroupingTests(PullCase):
    def test_two_images_of_a_repository_that_share_a_layer_are_two_pulls(self) -> None:
        one, two = Image("base", "a"), Image("base", "b")
        for tag, image in (("1", one), ("2", two)):
            self.client.head(tag, image.root)
        for image in (two, one):
            self.client.get(str(image.root.digest), image.root, image.contents)
        for blob in (two.config, one.config, *one.layers, two.layers[1]):
            self.client.blob(blob)
        self.assertEqual(len(self.quiet()), 1)
        self.assertEqual([(pull.image, pull.sent) for pull in self.pulls()], [(f"{NAME}:1", 2), (f"{NAME}:2", 1)])

    def test_two_nodes_behind_one_address_are_two_pulls(self) -> None:
        image = Image("a", several=True)
        assert image.index is not None
        for _ in range(2):
            self.client.head("1", image.root)
        for manifest, contents in ((image.index, image.listed), (image.manifest, image.contents)):
            for _ in range(2):
                self.client.get(str(manifest.digest), manifest, contents)
        for blob in (image.config, image.config, *image.layers, *image.layers):
            self.client.blob(blob)
        self.assertEqual([pull.sent for pull in self.pulls()], [1, 1])

    def test_two_nodes_and_two_repositories_are_pulls_of_their_own(self) -> None:
        image = Image("a")
        clients = [
            self.client,
            Client(self.board, self.clock, "10.0.0.2"),
            Client(self.board, self.clock, repository=Repository("registry.example", "team/other")),
        ]
        for client in clients:
            client.manifests("1", image)
        for blob in (image.config, image.layers[0]):
            for client in clients:
                client.blob(blob)
        self.assertEqual(
            [(pull.image, pull.who) for pull in self.pulls()],
            [(f"{NAME}:1", "agent-0"), (f"{NAME}:1", "agent-1"), ("registry.example/team/other:1", "agent-0")],
        )

    def test_the_next_pull_of_the_same_image_is_another_one(self) -> None:
        image = Image("a")
        for _ in range(2):
            self.client.head("1", image.root)
            self.clock.advance(1)
        self.assertEqual(len(self.quiet()), 2)

    def test_ranges_of_a_layer_at_once_belong_to_its_pull(self) -> None:
        image = Image("a")
        self.client.manifests("1", image)
        self.client.blob(image.config)
        ranges = [self.client.begin("GET", str(image.layers[0].digest), blob=True) for _ in range(2)]
        for each in ranges:
            self.client.end(each, 206, sent=500)
        self.assertEqual([(pull.sent, len(pull.requests)) for pull in self.pulls()], [(1, 5)])

    def test_what_push_tools_ask_and_what_belongs_to_no_pull_is_listed_apart(self) -> None:
        image = Image("a")
        self.client.head("1", image.root, may_pull=False)
        self.client.end(self.client.begin("HEAD", str(image.config.digest), blob=True))
        self.client.blob(image.config, 404, reason="unknown")
        push = evolve(self.client.blob(image.config), id="p", method="PUT", route="upload", status=201)
        self.board.answered(push)
        self.assertEqual(self.pulls(), [])
        self.assertEqual([report.method for report in self.board.live().others], ["PUT", "GET", "GET", "HEAD", "HEAD"])

    def test_what_is_remembered_is_bounded(self) -> None:
        for number in range(500):
            self.client.begin("HEAD", f"t{number}")
        self.assertEqual(len(self.board.live().pulling), 50)
        self.assertEqual(len(self.board.live().pulls), 30)
        client = Client(self.board, self.clock, "10.0.0.9")
        client.head("1", Image("a").root)
        for number in range(2000):
            client.blob(layer(str(number)), 404)
        [pull] = [each for each in self.board.live().pulling if each.client == "10.0.0.9"]
        self.assertEqual((len(pull.requests), pull.more_requests), (100, 900))
        self.board.shutdown()

    def test_a_manifest_that_lists_too_much_is_not_taken_apart(self) -> None:
        image = Image("a")
        huge = Manifest(image.contents.media_type, image.config, tuple(layer(str(each)) for each in range(2000)))
        self.client.get("1", image.root, huge)
        self.client.blob(image.config)
        self.assertEqual(self.quiet(), [f"{NAME}:1 to agent-0: 1 blob sent (15 B), 0.0 s"])


class ProgressTests(PullCase):
    def progress(self) -> tuple[int, int]:
        [pull] = self.board.live().pulling
        return pull.progress.done, pull.progress.total

    def send(self, blob: Descriptor, done: int) -> None:
        request = self.client.begin("GET", str(blob.digest), blob=True)
        self.board.began(Activity("transfer", "x", 0.0, lambda: Progress(done, blob.size), request_id=request.id))

    def test_the_bar_is_of_the_whole_pull(self) -> None:
        image = Image("a", "b", "c", "d")
        self.board.began(Activity("pull", f"{APP}:1", 1000.0, lambda: Progress(3, 8)))
        waiting = self.client.begin("HEAD", "1")
        self.assertEqual(self.progress(), (3, 8))
        self.client.end(waiting, manifest=image.root)
        self.client.get(str(image.root.digest), image.root, image.contents)
        self.assertEqual(self.progress(), (0, 4010))
        self.client.blob(image.config)
        # The node begins with the lowest layer that it lacks.
        self.send(image.layers[1], 250)
        self.send(image.layers[2], 10)
        self.assertEqual(self.progress(), (1270, 4010))
        self.assertEqual([each.kind for each in self.board.live().running], ["pull"])

    def test_linked_layers_are_done(self) -> None:
        image = Image("a", "b", "c")
        self.client.manifests("1", image, LinkedLayers("agent-0", 1, 1, 7000))
        self.assertEqual(self.progress(), (2000, 3010))


class NodeCountTests(PullCase):
    def test_what_each_node_got_is_counted(self) -> None:
        image = Image("a", "b")
        self.client.manifests("1", image, LinkedLayers("agent-0", 2, 0, 7000))
        self.client.blob(image.config)
        for name in ("agent-0", "agent-1"):
            linking = Activity("link", f"{APP} into {name}", 0.0)
            self.board.began(linking)
            linking.linked = LinkedLayers(name, 2, 0, 7000)
            self.board.ended(linking, 1.0, "")
        Client(self.board, self.clock, "10.0.0.9").pull("1", image)
        agent, other_agent, other = self.board.live().nodes
        self.assertEqual(
            (agent.name, dict(agent.pulls), agent.linked, agent.saved), ("agent-0", {"linked": 1}, 2, 7000)
        )
        self.assertEqual((other_agent.name, dict(other_agent.pulls), other_agent.saved), ("agent-1", {}, 7000))
        self.assertEqual((other.name, dict(other.pulls), other.sent_bytes), ("other", {"sent": 1}, 2015))

    def test_so_many_nodes_are_counted(self) -> None:
        for number in range(300):
            linking = Activity("link", "x", 0.0, linked=LinkedLayers(f"node-{number}", 1))
            self.board.ended(linking, 1.0, "")
        self.assertEqual(len(self.board.live().nodes), 100)


def text_of(tag: Tag) -> str:
    """Return what a reader sees."""
    html: list[bytes] = []
    Deferred.fromCoroutine(flatten(tag)).addCallback(html.append)
    return re.sub(r"<[^>]*>", "", html[0].decode())


class PageTests(PullCase):
    def test_a_pull_under_way_is_shown_with_what_came_of_it_so_far(self) -> None:
        image = Image("a", "b", "c")
        self.client.manifests("1", image)
        self.client.blob(image.config)
        self.client.blob(image.layers[1])
        self.client.begin("GET", str(image.layers[2].digest), blob=True)
        self.clock.advance(3)
        shown = text_of(under_way(self.board.live()))
        self.assertTrue(shown.startswith(f"{NAME}:1 to agent-0, 0.0 of 0.0 MB, 3 s, 1 layer sent (1.0 kB)"), shown)
        self.assertIn(f"GET {NAME}@{image.layers[2].digest} under way", shown)
        self.assertEqual(text_of(pulls(self.board.live().pulls)), "None yet.")

    def test_a_pull_that_is_over_is_shown_with_its_outcome_and_what_nodes_got(self) -> None:
        image = Image("a", "b")
        self.client.manifests("1", image, LinkedLayers("agent-0", 2, 0, 7000))
        self.client.blob(image.config)
        self.client.end(self.client.begin("HEAD", "9"), 404, reason="no <such> tag")
        self.quiet()
        linking = Activity("link", "x", 0.0, linked=LinkedLayers("agent-0", 2, 0, 7000))
        self.board.ended(linking, 1.0, "")
        live = self.board.live()
        shown = text_of(pulls(live.pulls))
        self.assertIn(f"{NAME}:9 to agent-0: failed after 0.0 s with 404: no &lt;such&gt; tag", shown)
        self.assertIn(f"{NAME}:1 to agent-0: 2 layers linked, 0.0 s", shown)
        self.assertEqual(
            text_of(nodes(live.nodes)), "agent-0: 2 pulls, 1 failed, 15 B sent, 2 layers linked, which saved 7.0 kB"
        )
