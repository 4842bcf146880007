"""Which content belongs to which image."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker.image import ChildManifest, EngineImage, ImageStore
from k3dreg.images.content_map import ContentMap
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import StoreFull
from k3dreg.oci.platform import Platform
from k3dreg.store.database import Database
from tests.fakes.databases import open_database
from tests.fakes.workers import InlineWorkers


def digest(text: str) -> Digest:
    return Digest.of(text.encode())


def image(name: str) -> EngineImage:
    """With something in every field."""
    child = Descriptor(media_types.OCI_MANIFEST, digest(name + "child"), 5, Platform("linux", "arm64", "v8"))
    return EngineImage(
        id=digest(name),
        store=ImageStore.CONTAINERD,
        tags=(f"{name}:latest",),
        repo_digests=(f"{name}@{digest(name)}",),
        diff_ids=(digest(name + "layer"),),
        descriptor=Descriptor(media_types.OCI_INDEX, digest(name), 7),
        children=(ChildManifest(child, True, "image"), ChildManifest(child, False, "attestation")),
        platform=Platform("linux", "amd64"),
        size=1234,
    )


def root(name: str) -> Descriptor:
    return Descriptor(media_types.OCI_INDEX, digest(name), 7)


def sizes(*contents: str) -> dict[Digest, int]:
    return {digest(content): len(content) for content in contents}


class ContentMapTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.clock = Clock()
        self.map = self.open()

    def open(self, limit: int = 100) -> ContentMap:
        self.database = open_database(self.root)
        self.addCleanup(self.database.close)
        return ContentMap(self.database, InlineWorkers(self.clock), limit)

    def restart(self, limit: int = 100) -> None:
        self.database.close()
        self.map = self.open(limit)

    def result(self, awaitable: Awaitable[Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(cast(Any, awaitable)))

    def record(self, name: str, *contents: str) -> None:
        self.result(self.map.record("export", image(name), root(name), sizes(*contents)))
        self.clock.advance(1)

    def names_with(self, content: str) -> list[str]:
        return [found.tags[0].partition(":")[0] for found in self.map.images_with(digest(content))]

    def recorded(self) -> tuple[int, int]:
        """How many images and parts are in the database."""
        counts = (self.database.row(f"SELECT count(*) FROM {table}") for table in ("engine_image", "engine_part"))
        images, parts = (0 if count is None else count[0] for count in counts)
        return images, parts

    def test_what_is_recorded_is_known_now_and_after_a_restart(self) -> None:
        self.record("a", "shared", "own")
        for _ in range(2):
            self.assertEqual(list(self.map.images_with(digest("shared"))), [image("a")])
            self.assertEqual(self.map.root_of(image("a")), root("a"))
            self.assertTrue(self.map.knows(digest("own")))
            self.assertEqual((self.map.size_of(digest("own")), self.map.size_in(image("a"), digest("own"))), (3, 3))
            self.restart()

    def test_nothing_is_known_of_others(self) -> None:
        self.record("a", "own")
        self.assertEqual(list(self.map.images_with(digest("other"))), [])
        self.assertFalse(self.map.knows(digest("other")))
        self.assertIsNone(self.map.size_of(digest("other")))
        self.assertIsNone(self.map.size_in(image("b"), digest("own")))
        self.assertIsNone(self.map.root_of(image("b")))

    def test_a_source_is_told_only_the_root_that_it_recorded_for_this_fingerprint(self) -> None:
        self.record("a", "own")
        more = evolve(image("a"), size=9999)
        self.assertEqual(self.map.root_of(image("a"), "export"), root("a"))
        self.assertIsNone(self.map.root_of(image("a"), "content"))
        self.assertIsNone(self.map.root_of(more, "export"))
        self.assertEqual(self.map.root_of(more), root("a"))

    def test_an_expired_image_keeps_its_parts_and_is_examined_again_by_its_source(self) -> None:
        self.record("a", "own")
        self.result(self.map.expire("content", image("a")))
        self.assertEqual(self.map.root_of(image("a"), "export"), root("a"))
        self.result(self.map.expire("export", image("a")))
        self.assertIsNone(self.map.root_of(image("a"), "export"))
        self.assertEqual(self.map.root_of(image("a")), root("a"))
        self.assertEqual(self.names_with("own"), ["a"])

    def test_an_image_that_lacks_content_has_parts_and_no_root(self) -> None:
        self.record("a", "own")
        self.result(self.map.record("content", image("a"), None, sizes("own", "more")))
        self.assertIsNone(self.map.root_of(image("a")))
        self.assertEqual(self.names_with("more"), ["a"])

    def test_a_part_is_absent_as_long_as_the_fingerprint_is_the_same(self) -> None:
        self.result(self.map.record("export", image("a"), root("a"), sizes("own"), sizes("lacking")))
        for _ in range(2):
            self.assertTrue(self.map.is_absent(image("a"), digest("lacking")))
            self.assertFalse(self.map.is_absent(image("a"), digest("own")))
            self.assertFalse(self.map.is_absent(evolve(image("a"), size=9999), digest("lacking")))
            self.restart()
        self.result(self.map.record("export", image("a"), root("a"), sizes("own", "lacking")))
        self.assertFalse(self.map.is_absent(image("a"), digest("lacking")))

    def test_a_manifest_s_children_are_parts_of_all_its_images(self) -> None:
        self.record("a", "manifest")
        self.record("b", "manifest", "child")
        self.record("c", "another")
        children = [Descriptor("", digest(name), 9) for name in ("child", "further")]
        self.result(self.map.record_children(digest("manifest"), children))
        self.assertEqual((self.names_with("child"), self.names_with("further")), (["b", "a"], ["b", "a"]))
        self.assertEqual(self.map.size_in(image("a"), digest("child")), 9)
        self.assertEqual(self.map.size_in(image("b"), digest("child")), 5)

    def test_images_that_share_content_come_most_recently_seen_first_also_after_a_restart(self) -> None:
        for name in ("a", "b", "c"):
            self.record(name, "shared")
        self.assertEqual(self.names_with("shared"), ["c", "b", "a"])
        for name in ("a", "b"):
            self.clock.advance(60)
            self.map.root_of(image(name))
        for _ in range(2):
            self.assertEqual(self.names_with("shared"), ["b", "a", "c"])
            self.restart()

    def test_an_image_that_is_seen_again_and_again_is_not_written_each_time(self) -> None:
        self.record("a", "own")
        self.clock.advance(60)
        self.map.root_of(image("a"))
        version = self.database.rows("PRAGMA data_version"), self.database.rows("SELECT total_changes()")
        for _ in range(5):
            self.map.root_of(image("a"))
        self.assertEqual(
            (self.database.rows("PRAGMA data_version"), self.database.rows("SELECT total_changes()")), version
        )

    def test_images_may_be_forgotten_while_they_are_gone_through(self) -> None:
        for name in ("a", "b", "c"):
            self.record(name, "shared")
        found = self.map.images_with(digest("shared"))
        self.assertEqual(next(found), image("c"))
        for name in ("c", "b"):
            self.result(self.map.forget(digest(name)))
        self.assertEqual(list(found), [image("a")])

    def test_a_forgotten_image_is_gone_for_good_and_forgetting_twice_is_no_error(self) -> None:
        self.record("a", "shared", "own")
        self.record("b", "shared")
        for _ in range(2):
            self.result(self.map.forget(digest("a")))
        self.restart()
        self.assertEqual((self.names_with("shared"), self.names_with("own")), (["b"], []))
        self.assertEqual(self.recorded(), (1, 1))

    def test_those_seen_longest_ago_are_dropped_beyond_the_limit(self) -> None:
        self.restart(limit=2)
        self.record("a", "shared", "own")
        self.record("b", "shared", "own")
        self.clock.advance(60)
        self.map.root_of(image("a"))
        self.clock.advance(1)
        self.record("c", "shared", "own")
        self.assertEqual(self.names_with("shared"), ["c", "a"])
        self.assertEqual(self.recorded(), (2, 4))

    def fail_writes(self) -> None:
        def full(*_: object) -> None:
            raise StoreFull("no room is left", advice="free some")

        self.patch(Database, "transact", full)

    def test_what_cannot_be_written_is_known_until_the_end(self) -> None:
        self.record("a", "manifest")
        self.fail_writes()
        self.result(self.map.record_children(digest("manifest"), [Descriptor("", digest("child"), 9)]))
        self.record("b", "own")
        self.result(self.map.forget(digest("a")))
        self.record("c", "own")
        self.assertEqual((self.names_with("manifest"), self.names_with("own")), ([], ["c", "b"]))
        self.assertEqual(self.map.root_of(image("b")), root("b"))
        self.restart()
        self.assertEqual(self.names_with("manifest"), ["a"])

    def test_children_are_recorded_of_images_from_before_the_disk_was_full(self) -> None:
        self.record("a", "manifest")
        self.fail_writes()
        self.result(self.map.record_children(digest("manifest"), [Descriptor("", digest("child"), 9)]))
        self.assertEqual(self.names_with("child"), ["a"])

    def test_a_database_that_cannot_be_used_is_as_an_empty_one(self) -> None:
        self.record("a", "own")
        self.database.close()
        self.assertEqual(self.names_with("own"), [])
        self.record("b", "own")
        self.assertEqual(self.names_with("own"), ["b"])

    def test_recording_while_k3dreg_stops_is_no_error(self) -> None:
        workers = InlineWorkers(self.clock)
        self.map = ContentMap(self.database, workers)
        workers.stop()
        self.record("a", "own")
        self.assertEqual(self.names_with("own"), [])
