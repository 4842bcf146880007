"""Which image a digest is served from, and what is known of it before it has come."""

from __future__ import annotations

from k3dreg.docker.image import ImageStore
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.engine_content import EngineContent
from k3dreg.reporting.trace import Trace
from tests.fakes.images import make_image, make_layer
from tests.fakes.pulling import HELLO, PullCase, by_digest

OTHER = Reference.parse(Repository.parse("library/other", "docker.io"), "1")


class EngineContentTests(PullCase):
    def pull_by(self, reference: Reference) -> list[Digest]:
        """What a node does, with an image that has no index; the digests of its config and its layers."""
        root = self.manifest(reference).descriptor
        document = Manifest.parse(self.fetch_manifest(by_digest(root.digest)), root.media_type)
        parts = [part.digest for part in document.children()]
        for digest in parts:
            self.assertEqual(Digest.of(self.fetch(digest)), digest)
        return parts

    def test_the_size_of_a_blob_that_comes_late_is_told_at_once_also_after_a_restart(self) -> None:
        self.engine.add(make_image())
        layer = self.pull()[-1]
        size = self.store.size_of(layer)
        self.now(self.store.discard(layer))
        self.restart()
        content = EngineContent([self.source], self.store, self.content_map, self.clock)
        self.engine.save_gate.shut()
        asked = self.begin(content.blob(layer, Trace()))
        self.assertNoResult(asked)
        self.clock.advance(5)
        blob = self.successResultOf(asked)
        self.assertEqual(blob.size, size)
        self.engine.save_gate.open()
        data = self.successResultOf(self.begin(blob.read()))
        self.assertEqual(Digest.of(data), layer)

    def test_a_blob_of_two_images_is_served_when_one_of_them_is_removed(self) -> None:
        base = make_layer({"base": b"b" * 1000})
        self.engine.add(make_image(layers=[base]))
        second = self.engine.add(make_image("docker.io/library/other:1", [base, make_layer({"own": b"own"})]))
        shared = self.pull_by(HELLO)[-1]
        own = self.pull_by(OTHER)[-1]
        self.engine.remove(second)
        self.restart()
        for digest in (shared, own):
            self.now(self.store.discard(digest))
        self.assertEqual(Digest.of(self.fetch(shared)), shared)
        self.failureResultOf(self.begin(self.registry.blob(HELLO.repository, own, Trace())), BlobUnknown)
        self.assertFalse(self.content_map.knows(own))

    def test_an_image_is_pulled_whose_record_cannot_be_written(self) -> None:
        self.database.close()
        self.engine.add(make_image())
        self.pull_by(HELLO)


class ClassicContentTests(EngineContentTests):
    store_kind = ImageStore.CLASSIC
