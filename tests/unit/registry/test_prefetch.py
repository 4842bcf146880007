"""Images that are made ready before anybody asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import provider

from k3dreg.docker.events import name_in
from k3dreg.docker.image import EngineImage, ImageStore
from k3dreg.images.content_map import ContentMap
from k3dreg.images.export_source import ExportSource
from k3dreg.images.source import IImageSource
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown
from k3dreg.registry.own_name_discovery import EngineImageNames
from k3dreg.registry.prefetch import Prefetch, matches
from k3dreg.reporting.trace import Trace
from k3dreg.store.arrivals import Arrivals
from k3dreg.streaming.content import IBlob
from tests.fakes.databases import open_database
from tests.fakes.engine import FakeEngine, SaveFault
from tests.fakes.images import FakeImage, make_image
from tests.fakes.stores import StoreTestCase
from tests.fakes.workers import InlineWorkers


@pytest.mark.parametrize(
    ("name", "pattern", "matched"),
    [
        ("my-app:1", "my-app:*", True),
        ("my-app:1", "my-app", True),
        ("my-app:1", "my-app:2", False),
        ("my-app:1", "my-*", True),
        ("my-app:1", "my", False),
        ("nginx:1.27", "docker.io/library/nginx:1.*", True),
        ("docker.io/library/nginx:1.27", "nginx", True),
        ("team/app:t", "docker.io/team/*", True),
        ("team/app:t", "team/*", True),
        ("team/app:t", "docker.io/library/*", False),
        ("localhost:5000/app:t", "localhost:5000/*", True),
        ("localhost:5000/app:t", "docker.io/*", False),
        ("localhost:5000/app", "localhost:5000/app", True),
        ("ghcr.io/a/b:v1", "ghcr.io/*:v[12]", True),
        ("nginx@sha256:" + 64 * "0", "nginx", True),
        ("My-app:1", "my-app", False),
        ("anything/at:all", "*", True),
    ],
)
def test_patterns_are_those_of_a_shell_for_names_as_docker_writes_them(name: str, pattern: str, matched: bool) -> None:
    assert matches(name, ["no-such", pattern]) is matched


@pytest.mark.parametrize(
    ("action", "actor", "name", "told"),
    [
        ("tag", "sha256:00", "team/app:1", "team/app:1"),
        ("pull", "nginx:1.27", "nginx", "nginx:1.27"),
        ("pull", "localhost:5000/app:1", "localhost:5000/app", "localhost:5000/app:1"),
        ("pull", f"nginx@sha256:{64 * '0'}", "nginx", f"nginx@sha256:{64 * '0'}"),
        ("pull", 64 * "0", "docker.io/library/nginx:1.27", "docker.io/library/nginx:1.27"),
        ("pull", 64 * "0", "", ""),
        ("load", "sha256:00", "sha256:00", ""),
        ("import", "sha256:00", "", ""),
        ("untag", "sha256:00", "team/app:1", None),
        ("delete", "sha256:00", "sha256:00", None),
        ("save", "sha256:00", "sha256:00", None),
        ("push", "team/app:1", "team/app", None),
    ],
)
def test_events_tell_names_or_that_there_are_some_or_nothing(
    action: str, actor: str, name: str, told: str | None
) -> None:
    assert name_in({"Type": "image", "Action": action, "Actor": {"ID": actor, "Attributes": {"name": name}}}) == told


def test_events_that_make_no_sense_are_no_more_than_a_hint() -> None:
    assert name_in({"Action": "tag"}) is None
    assert name_in({"Action": "tag", "Actor": {"ID": None, "Attributes": None}}) == ""
    assert name_in({}) is None


class AtHand:
    """A source that reads where the engine's files are."""

    name = "content"
    at_hand = True
    opened = 0

    async def root(self, image: EngineImage, trace: Trace) -> Descriptor:
        return Descriptor("application/vnd.oci.image.manifest.v1+json", image.id, 1)

    async def open(self, image: EngineImage, digest: Digest, trace: Trace) -> IBlob:
        self.opened += 1
        raise BlobUnknown("nothing")


class WarmingTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.lines: list[str] = []

        @provider(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event.get("log_namespace", "") in ("k3dreg.registry.prefetch", "k3dreg.registry.new_names"):
                self.lines.append(f"{event['log_level'].name} {formatEvent(event)}")

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.fake = FakeEngine(ImageStore.CLASSIC)
        self.engine = self.fake.client(self.clock)
        self.busy = False

    def archive(self) -> ExportSource:
        workers = InlineWorkers(self.clock)
        database = open_database(Path(self.mktemp()))
        self.addCleanup(database.close)
        arrivals, content_map = Arrivals(self.store, workers), ContentMap(database, workers)
        return ExportSource(self.engine, self.store, arrivals, content_map, workers, self.clock)

    def warm(self, *patterns: str, sources: Sequence[IImageSource] | None = None) -> Prefetch:
        names, chosen = EngineImageNames(self.engine, InlineWorkers()), [self.archive()] if sources is None else sources
        warming = Prefetch(patterns, self.engine, names, chosen, self.store, lambda: self.busy, self.clock)
        warming.start()
        self.addCleanup(warming.stop)
        return warming

    def is_ready(self, image: FakeImage) -> bool:
        return all(self.store.has(layer.diff_id) for layer in image.best.layers)

    def image(self, name: str) -> FakeImage:
        """One that is no other."""
        return make_image(f"docker.io/library/{name}", labels={"name": name})

    def test_images_that_are_there_are_made_ready_if_their_names_match(self) -> None:
        wanted, other = self.fake.add(self.image("wanted:1")), self.fake.add(self.image("other:1"))
        self.warm("wanted")
        self.assertTrue(self.is_ready(wanted))
        self.assertEqual(self.fake.saves, [str(wanted.id(ImageStore.CLASSIC))])
        self.assertNotEqual(wanted.id(ImageStore.CLASSIC), other.id(ImageStore.CLASSIC))
        self.assertRegex(self.lines[0], "^info made wanted:1 ready in 0.0 s")

    def test_what_is_loaded_tagged_or_pulled_later_is_made_ready_then(self) -> None:
        self.warm("a*")
        self.assertEqual(self.fake.saves, [])
        loaded = self.fake.add(self.image("a-loaded:1"))
        self.assertTrue(self.is_ready(loaded))
        other = self.fake.add(self.image("other:1"))
        self.assertEqual(len(self.fake.saves), 1)
        self.fake.tag(other.name, "docker.io/library/a-tagged:1")
        self.assertEqual(len(self.fake.saves), 2)
        self.fake.upstream["docker.io/library/a-pulled:1"] = self.image("a-pulled:1")
        self.result(self.engine.pull("docker.io/library/a-pulled:1", "", lambda _: None))
        self.assertEqual(len(self.fake.saves), 3)

    def test_an_image_of_several_names_is_made_ready_once(self) -> None:
        image = self.fake.add(self.image("a:1"))
        self.warm("a")
        self.fake.tag(image.name, "docker.io/library/a:2")
        self.fake.tag(image.name, "docker.io/library/a:3")
        self.assertEqual(len(self.fake.saves), 1)

    def test_a_tag_that_is_moved_is_made_ready_anew(self) -> None:
        self.fake.add(self.image("a:1"))
        self.warm("a")
        rebuilt = self.fake.add(make_image("docker.io/library/a:1", labels={"built": "anew"}))
        self.assertEqual(self.fake.saves[1:], [str(rebuilt.id(ImageStore.CLASSIC))])

    def test_requests_go_first(self) -> None:
        self.busy = True
        image = self.fake.add(self.image("a:1"))
        self.warm("a")
        self.clock.advance(60)
        self.assertEqual(self.fake.saves, [])
        self.busy = False
        self.clock.advance(1)
        self.assertTrue(self.is_ready(image))

    def test_one_is_made_ready_after_the_other(self) -> None:
        self.fake.save_gate.shut()
        for number in range(3):
            self.fake.add(self.image(f"a{number}:1"))
        self.warm("a*")
        self.assertEqual(len(self.fake.saves), 1)
        self.fake.save_gate.open()
        self.assertEqual(len(self.fake.saves), 3)

    def test_one_that_fails_costs_one_line_and_is_left_until_it_is_another(self) -> None:
        self.fake.save_fault = SaveFault("truncate", 1000)
        image = self.fake.add(self.image("a:1"))
        self.warm("a")
        self.fake.tag(image.name, "docker.io/library/a:2")
        self.assertEqual((len(self.fake.saves), len(self.lines)), (1, 1))
        self.assertTrue(self.lines[0].startswith("warn a:1 could not be made ready: "), self.lines)
        self.fake.save_fault = None
        self.assertTrue(self.is_ready(self.fake.add(make_image("docker.io/library/a:1", labels={"built": "anew"}))))

    def test_an_image_that_is_gone_by_then_is_no_trouble(self) -> None:
        self.busy = True
        image = self.fake.add(self.image("a:1"))
        self.warm("a", "b")
        self.fake.tag(image.name, "docker.io/library/b:1")
        self.fake.remove(image)
        self.busy = False
        self.clock.advance(1)
        self.assertEqual(len(self.lines), 1)

    def test_an_engine_that_comes_back_is_listened_to_again_and_what_came_meanwhile_is_found(self) -> None:
        self.warm("a")
        self.fake.cut()
        self.fake.down = True
        self.clock.advance(2)
        missed = self.fake.add(self.image("a:1"))
        self.fake.down = False
        self.clock.advance(2)
        self.assertTrue(self.is_ready(missed))
        self.assertTrue(self.is_ready(self.fake.add(make_image("docker.io/library/a:2", labels={"x": "y"}))))
        self.assertTrue(all(line.startswith("info") for line in self.lines), self.lines)

    def test_a_connection_that_has_been_quiet_for_long_is_made_anew(self) -> None:
        self.warm("a")
        [first] = self.fake.listeners
        self.clock.advance(600)
        self.fake.flush()
        self.clock.advance(2)
        [second] = self.fake.listeners
        self.assertIsNot(first, second)
        self.assertEqual(self.lines, [])

    def test_an_engine_that_does_not_tell_is_looked_at_every_minute_and_that_is_said_once(self) -> None:
        self.fake.keeps_to_itself = True
        self.warm("a")
        image = self.fake.add(self.image("a:1"))
        self.assertFalse(self.is_ready(image))
        self.clock.advance(60)
        self.assertTrue(self.is_ready(image))
        self.clock.advance(60)
        self.assertEqual([line for line in self.lines if line.startswith("warn")], self.lines[:1])
        self.assertIn("authorization denied by plugin", self.lines[0])

    def test_where_files_are_read_as_they_are_nothing_is_done(self) -> None:
        self.fake.add(self.image("a:1"))
        source = AtHand()
        self.warm("a", sources=[source, self.archive()])
        self.assertEqual((source.opened, self.fake.saves, self.lines), (0, [], []))

    def test_once_stopped_it_does_nothing_more(self) -> None:
        warming = self.warm("a")
        warming.stop()
        self.fake.flush()
        self.assertEqual(self.fake.listeners, [])
        self.fake.add(self.image("a:1"))
        self.assertEqual((self.fake.saves, self.clock.getDelayedCalls()), ([], []))

    def test_patterns_can_be_changed_while_it_runs(self) -> None:
        for name in ("a:1", "b:1"):
            self.fake.add(self.image(name))
        warming = self.warm()
        self.assertEqual((self.fake.saves, self.fake.listeners), ([], []))
        warming.change(["a"])
        self.assertEqual(len(self.fake.saves), 1)
        warming.change(["a", "b"])
        self.assertEqual(len(self.fake.saves), 2)
        warming.change([])
        self.fake.flush()
        self.fake.add(self.image("b:2"))
        self.assertEqual((len(self.fake.saves), self.fake.listeners), (2, []))
