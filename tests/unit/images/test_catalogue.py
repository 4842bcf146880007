"""Which content belongs to which image."""

from __future__ import annotations

import os
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker.image import ChildManifest, EngineImage, ImageStore
from k3dreg.images.catalogue import Catalogue, open_catalogue
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.platform import Platform
from tests.fakes.workers import InlineWorkers, ManualWorkers


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


class CatalogueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.catalogue = self.open()

    def open(self, limit: int = 100) -> Catalogue:
        catalogue: Catalogue = self.result(open_catalogue(self.root, InlineWorkers(), limit))
        return catalogue

    def result(self, awaitable: Awaitable[Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(cast(Any, awaitable)))

    def record(self, name: str, *contents: str) -> None:
        self.result(self.catalogue.record(image(name), root(name), map(digest, contents)))

    def files(self) -> list[str]:
        return sorted(path.stem for path in (self.root / "images").iterdir())

    def names_with(self, content: str) -> list[str]:
        return [found.tags[0].partition(":")[0] for found in self.catalogue.images_with(digest(content))]

    def test_what_is_recorded_is_known_now_and_after_a_restart(self) -> None:
        self.record("a", "shared", "own")
        for _ in range(2):
            self.assertEqual(list(self.catalogue.images_with(digest("shared"))), [image("a")])
            self.assertEqual(self.catalogue.root_of(image("a")), root("a"))
            self.assertTrue(self.catalogue.is_recorded(image("a")))
            self.catalogue = self.open()

    def test_nothing_is_known_of_others(self) -> None:
        self.record("a", "own")
        self.assertEqual(list(self.catalogue.images_with(digest("other"))), [])
        self.assertIs(self.catalogue.root_of(image("b")), None)
        self.assertFalse(self.catalogue.is_recorded(image("b")))

    def test_an_image_that_holds_more_than_when_it_was_recorded_is_not_recorded(self) -> None:
        self.record("a", "own")
        self.assertFalse(self.catalogue.is_recorded(evolve(image("a"), size=9999)))
        self.assertEqual(self.catalogue.root_of(evolve(image("a"), size=9999)), root("a"))

    def test_recording_again_replaces_what_was_known(self) -> None:
        self.record("a", "old", "both")
        self.record("a", "both", "new")
        for _ in range(2):
            self.assertEqual([self.names_with(content) for content in ("old", "both", "new")], [[], ["a"], ["a"]])
            self.catalogue = self.open()

    def test_images_that_share_content_come_most_recently_seen_first(self) -> None:
        for name in ("a", "b", "c"):
            self.record(name, "shared")
        self.assertEqual(self.names_with("shared"), ["c", "b", "a"])
        self.catalogue.is_recorded(image("a"))
        self.catalogue.root_of(image("b"))
        self.assertEqual(self.names_with("shared"), ["b", "a", "c"])

    def test_the_order_survives_a_restart(self) -> None:
        for age, name in enumerate(("a", "b", "c")):
            self.record(name, "shared")
            os.utime(self.root / "images" / f"{digest(name).hex}.json", (1000 - age, 1000 - age))
        self.catalogue = self.open()
        self.assertEqual(self.names_with("shared"), ["a", "b", "c"])

    def test_a_forgotten_image_is_gone_for_good_and_forgetting_twice_is_no_error(self) -> None:
        self.record("a", "shared")
        self.record("b", "shared")
        for _ in range(2):
            self.result(self.catalogue.forget(digest("a")))
        self.assertEqual((self.names_with("shared"), self.files()), (["b"], [digest("b").hex]))

    def test_those_seen_longest_ago_are_dropped_beyond_the_limit(self) -> None:
        self.catalogue = self.open(limit=2)
        self.record("a", "shared")
        self.record("b", "shared")
        self.catalogue.is_recorded(image("a"))
        self.record("c", "shared")
        self.assertEqual(self.names_with("shared"), ["c", "a"])
        self.assertEqual(self.files(), sorted([digest("a").hex, digest("c").hex]))
        self.catalogue = self.open(limit=1)
        self.assertEqual((len(self.names_with("shared")), len(self.files())), (1, 1))

    def test_damaged_files_are_dropped_and_the_others_are_not(self) -> None:
        self.record("a", "own")
        good = (self.root / "images" / f"{digest('a').hex}.json").read_bytes()
        for number, damaged in enumerate(
            (b"", b"[]", b"{}", good[:-9], good, good.replace(b'"version": 1', b'"version": 2'))
        ):
            (self.root / "images" / f"{digest(str(number)).hex}.json").write_bytes(damaged)
        self.catalogue = self.open()
        self.assertEqual((self.files(), self.names_with("own")), ([digest("a").hex], ["a"]))

    def test_nothing_is_left_in_staging(self) -> None:
        self.record("a", "own")
        self.assertEqual(list((self.root / "staging").iterdir()), [])

    def test_of_a_record_and_a_forget_that_overtake_each_other_the_later_call_counts(self) -> None:
        workers = ManualWorkers()
        opening = Deferred.fromCoroutine(open_catalogue(self.root, workers))
        workers.work()
        self.catalogue = self.successResultOf(opening)
        recording = Deferred.fromCoroutine(self.catalogue.record(image("a"), root("a"), [digest("own")]))
        forgetting = Deferred.fromCoroutine(self.catalogue.forget(digest("a")))
        workers.waiting.reverse()
        workers.work()
        workers.work()
        self.successResultOf(recording)
        self.successResultOf(forgetting)
        self.assertEqual(self.files(), [])

    def test_what_cannot_be_written_is_known_all_the_same(self) -> None:
        (self.root / "images").rmdir()
        self.result(self.catalogue.record(image("a"), root("a"), []))
        self.assertEqual(self.catalogue.root_of(image("a")), root("a"))
        self.result(self.catalogue.forget(image("a").id))
        self.assertIsNone(self.catalogue.root_of(image("a")))
