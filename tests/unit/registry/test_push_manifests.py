"""Pushed manifests, and the parts that need not be pushed because they are here."""

from __future__ import annotations

import json
from typing import cast

from twisted.internet.defer import CancelledError, Deferred

from k3dreg.oci import media_types
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    BlobUnknown,
    DigestNotMatched,
    InvalidManifest,
    K3dregError,
    ManifestBlobUnknown,
    ManifestUnknown,
)
from k3dreg.oci.reference import Reference, Repository, Tag
from k3dreg.reporting.trace import Trace
from k3dreg.store.collection import GRACE
from tests.fakes.databases import blobs_in, manifests_in, tags_in
from tests.fakes.pushing import APP, CONFIG, NAMED, OTHER, UploadsCase, described, image, index
from tests.fakes.registry import WholeBlob
from tests.fakes.stores import layer
from tests.fakes.workers import ManualWorkers


class ManifestTests(UploadsCase):
    def setUp(self) -> None:
        super().setUp()
        self.push_blob(CONFIG)
        self.push_blob(b"layer")
        self.image = image(b"layer")

    def served(self, target: str, repository: Repository = APP) -> bytes:
        reference = Reference.parse(repository, target)
        manifest = self.result(self.registry.manifest(reference, None, Trace()))
        data = self.result(self.result(manifest.open()).read())
        self.assertEqual(manifest.descriptor.digest, Digest.of(data, manifest.descriptor.digest.algorithm))
        return cast(bytes, data)

    def test_the_very_bytes_are_served_under_every_own_name_and_after_a_restart(self) -> None:
        odd = self.image.replace(b", ", b" ,\n  ")
        digest = self.push(odd, "t")
        for _ in range(2):
            for repository in (APP, NAMED):
                self.assertEqual(self.served("t", repository), odd)
                self.assertEqual(self.served(str(digest), repository), odd)
                self.assertEqual(self.read(Digest.of(b"layer"), repository), b"layer")
            self.restart()

    def test_an_engine_that_asks_for_us_gets_what_was_pushed_and_nothing_of_its_own(self) -> None:
        digest = self.push(self.image, "t")
        theirs = self.engines.put(WholeBlob(b"of the engine"))
        self.engines.tag("docker.io/library/x:1", media_types.OCI_MANIFEST, WholeBlob(b"{}"))
        hub = Reference.parse(Repository("docker.io", "library/x"), "1")
        for circular in (False, True):
            trace = Trace(circular=circular)
            self.result(self.registry.manifest(Reference.parse(APP, "t"), None, trace))
            self.result(self.registry.blob(APP, Digest.of(b"layer"), trace))
            manifest, blob = self.registry.manifest(hub, None, trace), self.registry.blob(hub.repository, theirs, trace)
            if circular:
                self.assertIn("registry mirror", str(self.failed(manifest, ManifestUnknown)))
                self.assertIn("registry mirror", str(self.failed(blob, BlobUnknown)))
            else:
                self.result(manifest)
                self.result(blob)
        self.assertEqual(self.served(str(digest)), self.image)

    def test_it_may_be_pushed_under_its_digest_and_several_tags(self) -> None:
        digest = Digest.of(self.image, "sha512")
        self.assertEqual(self.push(self.image, "a", "b", digest=digest), digest)
        self.assertEqual(self.served("a"), self.image)
        self.failed(
            self.uploads.push_manifest(APP, self.image + b" ", media_types.OCI_MANIFEST, digest, [], Trace()),
            DigestNotMatched,
        )

    def test_parts_that_are_nowhere_are_named(self) -> None:
        manifest = image(b"layer", b"missing")
        error = self.failed(
            self.uploads.push_manifest(APP, manifest, media_types.OCI_MANIFEST, None, [Tag("t")], Trace()),
            ManifestBlobUnknown,
        )
        self.assertIn(str(Digest.of(b"missing")), str(error))
        self.assertFalse(self.store.has(Digest.of(manifest)))
        self.assertEqual(tags_in(self.database, APP), {})

    def test_an_index_needs_its_manifests(self) -> None:
        whole = index(self.image)
        push = self.uploads.push_manifest(APP, whole, media_types.OCI_INDEX, None, [Tag("t")], Trace())
        self.failed(push, ManifestBlobUnknown)
        self.push(self.image)
        self.push(whole, "t")
        self.assertEqual(self.served("t"), whole)
        self.push(index(), "empty")
        self.push(index(whole), "nested")

    def test_parts_may_be_missing_if_the_settings_say_so_and_come_later(self) -> None:
        sparse, other = image(b"layer", b"missing"), image(b"missing too")
        refused = [(sparse, media_types.OCI_MANIFEST), (index(sparse, other), media_types.OCI_INDEX)]
        for data, media_type in refused:
            push = self.uploads.push_manifest(APP, data, media_type, None, [Tag("t")], Trace())
            self.failed(push, ManifestBlobUnknown)
        self.uploads.allow_sparse(manifests=False, indexes=True)
        self.push(index(self.image, other), "index")
        self.assertEqual(list(manifests_in(self.database, APP)), [Digest.of(index(self.image, other))])
        push = self.uploads.push_manifest(APP, sparse, media_types.OCI_MANIFEST, None, [Tag("t")], Trace())
        self.failed(push, ManifestBlobUnknown)
        self.uploads.allow_sparse(manifests=True, indexes=True)
        self.push(sparse, "t")
        self.push(index(sparse, other), "index")
        self.assertEqual(self.served("t"), sparse)
        self.failed(self.registry.blob(APP, Digest.of(b"missing"), Trace()), BlobUnknown)
        self.failed(self.registry.manifest(Reference(APP, Digest.of(other)), None, Trace()), ManifestUnknown)
        self.push_blob(b"missing")
        self.clock.advance(2 * GRACE)
        self.result(self.collector.collect())
        self.assertEqual(self.read(Digest.of(b"missing")), b"missing")

    def test_layers_that_may_not_be_distributed_are_not_looked_for(self) -> None:
        foreign = described("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", b"elsewhere")
        self.push(image(layers=[foreign]), "t")

    def test_no_layers_at_all_even_as_go_writes_it(self) -> None:
        self.push(image(), "t")
        self.push(image(layers=None), "t")

    def test_what_is_no_manifest_is_refused(self) -> None:
        for data, media_type in ((b"{", ""), (b"[]", ""), (self.image, media_types.OCI_INDEX), (b"{}", "text/plain")):
            push = self.uploads.push_manifest(APP, data, media_type, None, [Tag("t")], Trace())
            self.failed(push, InvalidManifest)
        self.assertEqual(manifests_in(self.database, APP), {})

    def test_referrers_are_found_by_subject_with_type_and_annotations(self) -> None:
        subject = described(media_types.OCI_MANIFEST, b"not pushed yet")
        plain = self.push(image(b"layer", subject=subject))
        typed = self.push(image(subject=subject, artifactType="app/sbom", annotations={"a": "b"}))
        listed = self.push(index(subject=subject))
        page = self.result(self.pushed.referrers(APP, Digest.of(b"not pushed yet"), None, None, 10_000))
        found = {digest: json.loads(descriptor) for digest, descriptor in page.descriptors.items()}
        self.assertEqual(found[plain]["artifactType"], media_types.OCI_CONFIG)
        self.assertEqual(found[typed]["artifactType"], "app/sbom")
        self.assertEqual(found[typed]["annotations"], {"a": "b"})
        self.assertNotIn("artifactType", found[listed])
        self.assertEqual(found[listed]["mediaType"], media_types.OCI_INDEX)

    def test_what_no_real_manifest_has_is_refused(self) -> None:
        subject = described(media_types.OCI_MANIFEST, b"subject")
        config = {**described(media_types.OCI_CONFIG, CONFIG), "mediaType": "a/" + "x" * 300}
        foreign = media_types.OCI_LAYER.replace("layer", "layer.nondistributable")
        layers = [described(foreign, str(number).encode()) for number in range(10_001)]
        for heavy in ({"artifactType": "a/" + "x" * 300}, {"config": config}, {"layers": layers}):
            push = self.uploads.push_manifest(APP, image(subject=subject, **heavy), "", None, [], Trace())
            self.failed(push, InvalidManifest)


class ParsingTests(UploadsCase):
    def test_one_after_the_other_also_when_clients_leave(self) -> None:
        self.workers = ManualWorkers(self.clock)
        self.begin()
        taking = [
            Deferred.fromCoroutine(
                self.uploads.push_manifest(APP, data, media_types.OCI_MANIFEST, None, [], Trace())
            ).addErrback(lambda failure: failure.type)
            for data in (b"{", b"[", b"]")
        ]
        self.assertEqual(len(self.workers.waiting), 1)
        taking[1].cancel()
        while self.workers.waiting:
            self.assertEqual(len(self.workers.waiting), 1)
            self.workers.work()
        self.assertEqual(
            [self.successResultOf(each) for each in taking], [InvalidManifest, CancelledError, InvalidManifest]
        )


class AdoptingTests(UploadsCase):
    def test_what_was_only_cached_is_the_users_now_and_is_never_evicted(self) -> None:
        for data in (CONFIG, layer(1)):
            self.put(data)
        self.push(image(layer(1)), "t")
        for number in range(2, 30):
            self.put(layer(number))
        self.assertTrue(self.store.has(Digest.of(layer(1))))
        self.assertFalse(self.store.has(Digest.of(layer(2))))
        self.restart()
        self.assertEqual(self.read(Digest.of(layer(1))), layer(1))

    def test_what_docker_has_is_copied_before_the_manifest_is_acknowledged(self) -> None:
        self.push_blob(CONFIG)
        self.engines.put(WholeBlob(b"docker's"))
        digest = self.push(image(b"docker's"), "t")
        self.engines.blobs.clear()
        self.assertEqual(self.read(Digest.of(b"docker's")), b"docker's")
        self.assertTrue(self.pushed.keeps(digest))

    def test_wrong_bytes_of_docker_are_not_taken(self) -> None:
        self.push_blob(CONFIG)
        blob = WholeBlob(b"something else")
        blob.digest = Digest.of(b"what was asked for")
        self.engines.put(blob)
        push = self.uploads.push_manifest(APP, image(b"what was asked for"), "", None, [Tag("t")], Trace())
        self.failed(push, K3dregError)
        self.assertEqual((tags_in(self.database, APP), self.staged()), ({}, []))

    def test_an_index_adopts_a_manifest_with_all_its_parts(self) -> None:
        for data in (CONFIG, b"layer", image(b"layer")):
            self.put(data)
        self.push(index(image(b"layer")), "t")
        self.assertEqual(set(blobs_in(self.database, APP)), {Digest.of(CONFIG), Digest.of(b"layer")})
        self.assertEqual(
            set(manifests_in(self.database, APP)), {Digest.of(image(b"layer")), Digest.of(index(image(b"layer")))}
        )

    def test_a_blob_is_mounted_when_it_is_here_and_only_then(self) -> None:
        digest = self.push_blob(b"blob", OTHER)
        self.assertTrue(self.result(self.uploads.mount(APP, digest, Trace())))
        self.assertFalse(self.result(self.uploads.mount(APP, Digest.of(b"nowhere"), Trace())))
        self.result(self.uploads.delete_blob(OTHER, digest))
        self.restart()
        self.assertEqual(self.read(digest), b"blob")

    def test_what_was_deleted_counts_as_pushed_only_until_its_file_is_gone(self) -> None:
        read, other = self.push_blob(b"blob", OTHER), self.push_blob(b"another", OTHER)
        self.restart()  # which ends the holds of the push
        self.addCleanup(self.store.hold([read]))
        for digest in (read, other):
            self.result(self.uploads.delete_blob(OTHER, digest))
        self.assertEqual([self.pushed.was_pushed(digest) for digest in (read, other)], [True, False])


class LostTests(UploadsCase):
    """Somebody has removed files from the state directory, or the disk has lost them."""

    def lose(self, digest: Digest) -> None:
        self.result(self.store.discard(digest))

    def test_a_manifest_whose_part_is_lost_is_refused_until_the_part_is_pushed_again(self) -> None:
        self.push_blob(CONFIG)
        lost = self.push_blob(b"layer")
        self.lose(lost)
        taking = self.uploads.push_manifest(APP, image(b"layer"), media_types.OCI_MANIFEST, None, [], Trace())
        self.failed(taking, ManifestBlobUnknown)
        self.assertFalse(self.result(self.uploads.mount(APP, lost, Trace())))
        self.push_blob(b"layer")
        self.push(image(b"layer"), "t")

    def test_a_lost_manifest_is_not_here_and_may_be_pushed_again(self) -> None:
        self.push_blob(CONFIG)
        digest = self.push(image(), "t")
        self.lose(digest)
        for target in ("t", str(digest)):
            self.failed(self.registry.manifest(Reference.parse(APP, target), None, Trace()), ManifestUnknown)
        taking = self.uploads.push_manifest(APP, index(image()), media_types.OCI_INDEX, None, [], Trace())
        self.failed(taking, ManifestBlobUnknown)
        self.push(image(), "t")
        self.push(index(image()), "i")
