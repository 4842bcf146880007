"""What is deleted is gone, what nobody refers to goes, and nothing else ever does."""

from __future__ import annotations

import json
from collections.abc import Iterable

from twisted.internet.defer import Deferred

from k3dreg.oci import media_types
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown, ManifestBlobUnknown, ManifestUnknown, StoreError, UnsupportedOperation
from k3dreg.oci.reference import Reference, Tag
from k3dreg.reporting.trace import Trace
from k3dreg.store.blob_store import SETTLING
from k3dreg.store.collection import GRACE
from tests.fakes.databases import manifests_in
from tests.fakes.pushing import APP, CONFIG, NAMED, OTHER, UploadsCase, described, image, index
from tests.fakes.registry import WholeBlob
from tests.fakes.stores import layer
from tests.fakes.workers import ManualWorkers


class EvictionTests(UploadsCase):
    def test_what_was_pushed_is_never_evicted_and_leaves_the_cache_its_room(self) -> None:
        for number in range(20):
            self.push_blob(layer(number))
        self.clock.advance(SETTLING)
        for number in range(100, 104):
            self.put(layer(number))
        self.assertTrue(all(self.store.has(Digest.of(layer(number))) for number in range(20)))
        self.assertTrue(all(self.store.has(Digest.of(layer(number))) for number in range(100, 104)))
        for number in range(104, 110):
            self.put(layer(number))
        self.assertTrue(all(self.store.has(Digest.of(layer(number))) for number in range(20)))
        self.assertFalse(self.store.has(Digest.of(layer(100))))


class DeletingTests(UploadsCase):
    def test_what_was_deleted_is_gone_there_and_nowhere_else(self) -> None:
        digest = self.push_blob(b"blob")
        self.push_blob(b"blob", OTHER)
        self.result(self.uploads.delete_blob(APP, digest))
        self.failed(self.registry.blob(APP, digest, Trace()), BlobUnknown)
        self.assertEqual(self.read(digest, OTHER), b"blob")
        self.result(self.uploads.delete_blob(OTHER, digest))
        self.failed(self.registry.blob(OTHER, digest, Trace()), BlobUnknown)
        self.failed(self.uploads.delete_blob(APP, digest), BlobUnknown)

    def test_the_file_goes_when_nobody_needs_it(self) -> None:
        digest = self.push_blob(b"blob")
        self.clock.advance(SETTLING)
        self.result(self.uploads.delete_blob(APP, digest))
        self.assertFalse(self.store.has(digest))

    def test_a_file_that_was_in_use_goes_when_the_use_ends_and_is_not_served_meanwhile(self) -> None:
        digest = self.push_blob(b"blob")
        self.result(self.uploads.delete_blob(APP, digest))
        self.assertTrue(self.store.has(digest))
        self.failed(self.registry.blob(APP, digest, Trace()), BlobUnknown)
        self.clock.advance(SETTLING)
        self.assertFalse(self.store.has(digest))

    def test_what_docker_has_too_is_served_from_there(self) -> None:
        digest = self.push_blob(b"blob")
        self.engines.put(WholeBlob(b"blob"))
        self.result(self.uploads.delete_blob(APP, digest))
        self.assertEqual(self.read(digest), b"blob")

    def test_manifests_and_tags(self) -> None:
        self.push_blob(CONFIG)
        digest = self.push(image(), "a", "b")
        self.result(self.uploads.delete_tag(APP, Tag("a")))
        self.failed(self.uploads.delete_tag(APP, Tag("a")), ManifestUnknown)
        self.result(self.uploads.delete_manifest(NAMED, digest))
        for target in ("a", "b", str(digest)):
            self.failed(self.registry.manifest(Reference.parse(APP, target), None, Trace()), ManifestUnknown)
        self.failed(self.uploads.delete_manifest(APP, digest), ManifestUnknown)

    def test_it_can_be_turned_off(self) -> None:
        digest = self.push_blob(CONFIG)
        manifest = self.push(image(), "t")
        self.uploads.allow_deleting(False)
        for delete in (
            self.uploads.delete_tag(APP, Tag("t")),
            self.uploads.delete_manifest(APP, manifest),
            self.uploads.delete_blob(APP, digest),
        ):
            self.failed(delete, UnsupportedOperation)
        self.assertEqual(self.read(digest), CONFIG)
        self.uploads.allow_deleting(True)
        self.result(self.uploads.delete_blob(APP, digest))


class CollectingTests(UploadsCase):
    def collect(self, grace: float = GRACE, untagged: bool = False) -> tuple[int, int, int]:
        collected = self.result(self.collector.collect(grace, untagged=untagged))
        return collected.blobs, collected.manifests, collected.files

    def blobs(self, *contents: bytes) -> Iterable[bool]:
        return [self.store.has(Digest.of(data)) for data in contents]

    def test_blobs_without_a_manifest_go_after_the_grace_and_others_never(self) -> None:
        for data in (CONFIG, b"layer", b"orphan"):
            self.push_blob(data)
        manifest = self.push(image(b"layer"), "t")
        self.clock.advance(GRACE - 1)
        self.assertEqual(self.collect(), (0, 0, 0))
        self.clock.advance(1)
        self.assertEqual(self.collect(), (1, 0, 1))
        self.assertEqual(self.blobs(CONFIG, b"layer", b"orphan"), [True, True, False])
        self.assertTrue(self.store.has(manifest))

    def test_a_blob_that_a_client_was_told_of_gets_its_grace_anew(self) -> None:
        digest = self.push_blob(b"layer")
        self.push_blob(CONFIG)
        self.clock.advance(GRACE - 1)
        self.read(digest)
        self.assertTrue(self.result(self.uploads.mount(APP, Digest.of(CONFIG), Trace())))
        self.clock.advance(GRACE - 1)
        self.assertEqual(self.collect(), (0, 0, 0))
        self.push(image(b"layer"), "t")
        self.clock.advance(GRACE * 2)
        self.assertEqual(self.collect(), (0, 0, 0))

    def test_a_blob_that_comes_again_while_it_is_collected_stays(self) -> None:
        self.push_blob(b"orphan")
        self.clock.advance(GRACE)
        self.workers = ManualWorkers(self.clock)
        pushed, self.pushed._commits._workers = self.pushed._commits._workers, self.workers
        collecting = Deferred.fromCoroutine(self.collector.collect())
        # The link is being removed from the list; the same blob is uploaded at this moment.
        writer = self.store.writer(durable=True)
        writer.write(b"orphan")
        digest = writer.commit()
        again = Deferred.fromCoroutine(self.pushed.add_blob(APP, digest, 1))
        self.workers.work()
        self.workers.work()
        self.pushed._commits._workers = pushed
        self.successResultOf(again)
        self.successResultOf(collecting)
        self.assertEqual(self.read(digest), b"orphan")

    def test_no_client_is_told_of_a_blob_that_is_being_collected(self) -> None:
        digest = self.push_blob(b"orphan")
        self.push_blob(b"orphan", OTHER)
        self.push_blob(CONFIG, OTHER)
        self.push(image(layers=[described(media_types.OCI_LAYER, b"orphan")]), "t", repository=OTHER)
        self.clock.advance(GRACE)
        self.workers = ManualWorkers(self.clock)
        pushed, self.pushed._commits._workers = self.pushed._commits._workers, self.workers
        collecting = Deferred.fromCoroutine(self.collector.collect())
        self.assertFalse(self.pushed.has_blob(APP, digest))
        self.assertTrue(self.pushed.has_blob(OTHER, digest))
        self.workers.work()
        self.pushed._commits._workers = pushed
        self.assertEqual(self.successResultOf(collecting).blobs, 1)

    def test_a_manifest_that_comes_while_its_blob_is_collected_is_refused_and_not_broken(self) -> None:
        for data in (CONFIG, b"layer"):
            self.push_blob(data)
        self.clock.advance(GRACE)
        self.workers = ManualWorkers(self.clock)
        self.pushed._commits._workers, workers = self.workers, self.pushed._commits._workers
        collecting = Deferred.fromCoroutine(self.collector.collect())
        pushing = self.uploads.push_manifest(APP, image(b"layer"), media_types.OCI_MANIFEST, None, [Tag("t")], Trace())
        taking = Deferred.fromCoroutine(pushing)
        while self.workers.waiting:
            self.workers.work()
        self.pushed._commits._workers = workers
        self.successResultOf(collecting)
        self.failureResultOf(taking, ManifestBlobUnknown)
        self.assertIsNone(self.pushed.find(Reference(APP, Tag("t"))))

    def test_after_a_deleted_manifest_its_parts_go_too(self) -> None:
        for data in (CONFIG, b"layer"):
            self.push_blob(data)
        self.result(self.uploads.delete_manifest(APP, self.push(image(b"layer"), "t")))
        self.clock.advance(GRACE)
        self.assertEqual(self.collect(), (2, 0, 2))
        self.assertEqual(self.store.usage().count, 0)
        self.assertFalse(self.pushed.has(APP))

    def test_manifests_that_no_tag_leads_to_go_only_when_asked(self) -> None:
        self.push_blob(CONFIG)
        old = self.push(image(annotations={"n": "old"}), "t")
        child = image(annotations={"n": "child"})
        self.push(child)
        self.push(index(child), "t")
        about = json.loads(image(annotations={"n": "about"}))
        about["subject"] = described(media_types.OCI_INDEX, index(child))
        self.push(json.dumps(about).encode())
        self.assertEqual(self.collect(0), (0, 0, 0))
        self.clock.advance(SETTLING)
        self.assertEqual(self.collect(0, untagged=True), (0, 1, 1))
        self.assertIsNone(self.pushed.find(Reference(APP, old)))
        self.assertEqual(len(manifests_in(self.database, APP)), 3)

    def test_a_cached_copy_of_what_was_deleted_is_docker_s(self) -> None:
        digest = self.push_blob(b"blob")
        self.engines.put(WholeBlob(b"blob"))
        self.result(self.pushed.remove_blob(APP, digest))
        self.clock.advance(GRACE)
        self.assertEqual(self.collect(), (0, 0, 0))
        self.assertTrue(self.store.has(digest))

    def test_it_goes_on_by_itself_also_after_a_failure(self) -> None:
        self.push_blob(b"orphan")
        self.collector.start()
        self.addCleanup(self.collector.stop)
        drop = self.store.drop

        async def failing(digest: Digest) -> bool:
            raise StoreError("a bad day")

        self.store.drop = failing  # type: ignore[method-assign]
        self.clock.pump([GRACE / 10] * 12)
        self.assertTrue(self.store.has(Digest.of(b"orphan")))
        self.store.drop = drop  # type: ignore[method-assign]
        self.clock.pump([GRACE / 10] * 2)
        self.assertFalse(self.store.has(Digest.of(b"orphan")))
