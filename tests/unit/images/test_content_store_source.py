from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred

from k3dreg.docker.image import ChildManifest, EngineImage, EngineInfo, ImageStore
from k3dreg.engine_files.layout import content_path
from k3dreg.images.content_map import ContentMap
from k3dreg.images.content_store_source import ContentStoreSource
from k3dreg.oci import media_types
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown, EngineUnavailable, ImageIncomplete, ManifestUnknown
from k3dreg.reporting.trace import Trace
from tests.fakes.consumers import Reader
from tests.fakes.databases import open_database
from tests.fakes.engine_files import FakeEngineFiles, FakeInfo
from tests.fakes.images import FakeImage, lose, make_image, make_layer
from tests.fakes.stores import StoreTestCase
from tests.fakes.workers import InlineWorkers

ROOT = "/var/lib/docker"
OWN = f"{ROOT}/containerd/daemon/io.containerd.content.v1.content"
SYSTEM = "/var/lib/containerd/io.containerd.content.v1.content"
INFO = EngineInfo("an-engine", "28.5.2", (1, 51), ImageStore.CONTAINERD, "overlayfs", ROOT)


class ContentStoreTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.files = FakeEngineFiles({})
        self.engine = FakeInfo(INFO)
        database = open_database(Path(self.mktemp()))
        self.addCleanup(database.close)
        self.map = ContentMap(database, InlineWorkers(self.clock))
        self.source = self.make(self.files)

    def make(self, *files: FakeEngineFiles) -> ContentStoreSource:
        return ContentStoreSource(self.engine, files, self.map)

    def hold(self, fake: FakeImage, directory: str = OWN) -> EngineImage:
        self.files.host |= {content_path(directory, digest): data for digest, data in fake.contents.items()}
        return EngineImage(fake.root.digest, ImageStore.CONTAINERD, descriptor=fake.root)

    def root_of(self, image: EngineImage) -> Any:
        return self.result(self.source.root(image, Trace()))

    def fetch(self, image: EngineImage, digest: Digest) -> bytes:
        blob = self.result(self.source.open(image, digest, Trace()))
        reader = Reader()
        self.result(blob.send(reader, 0, blob.size))
        self.assertEqual(blob.digest, digest)
        return reader.received

    def refuses(self, call: Callable[..., Any], *arguments: Any, kind: type[Exception]) -> Any:
        return self.failureResultOf(Deferred.fromCoroutine(call(*arguments, Trace())), kind).value

    def test_the_root_is_the_engine_s_own_and_every_part_comes_from_its_file(self) -> None:
        for fake in (make_image(), make_image(indexed=True), make_image(platforms=["linux/amd64", "linux/arm64"])):
            image = self.hold(fake)
            self.assertEqual(self.root_of(image), fake.root)
            for digest, data in fake.contents.items():
                self.assertEqual(self.fetch(image, digest), data)

    def test_engines_that_tell_no_descriptor_are_served_too(self) -> None:
        fake = make_image(indexed=True)
        self.assertEqual(self.root_of(evolve(self.hold(fake), descriptor=None)), fake.root)

    def test_a_manifest_is_what_it_says_whatever_the_engine_was_told_it_is(self) -> None:
        fake = make_image()
        called = evolve(fake.root, media_type=media_types.DOCKER_MANIFEST)
        self.assertNotEqual(called.media_type, fake.root.media_type)
        self.assertEqual(self.root_of(evolve(self.hold(fake), descriptor=called)), fake.root)

    def test_nothing_is_copied_and_an_image_is_examined_once_also_by_the_next_start(self) -> None:
        fake = make_image()
        image = self.hold(fake)
        self.root_of(image)
        self.assertEqual(self.store.usage().count, 0)
        self.files.asked.clear()
        self.source = self.make(self.files)
        self.root_of(image)
        self.assertEqual(self.files.asked, [])
        self.fetch(image, fake.root.digest)
        self.assertEqual(self.files.asked, [content_path(OWN, fake.root.digest)])

    def test_what_is_not_a_part_of_the_image_is_unknown_although_it_is_there(self) -> None:
        fake, other = make_image(), make_image(layers=[make_layer({"other": b"other"})])
        image = self.hold(fake)
        self.hold(other)
        for digest in (other.root.digest, other.variants[0].layers[0].descriptor.digest, Digest.of(b"x")):
            self.refuses(self.source.open, image, digest, kind=BlobUnknown)

    def test_an_image_without_a_whole_platform_is_incomplete(self) -> None:
        for fake in (make_image(), make_image(platforms=["linux/amd64", "linux/arm64"])):
            for digest in (Digest.of(fake.best.config), *self.layers(fake)):
                self.files.host.clear()
                image = self.hold(lose(fake, digest))
                self.source = self.make(self.files)
                self.refuses(self.source.root, image, kind=ImageIncomplete)
                self.refuses(self.source.open, image, digest, kind=BlobUnknown)

    def layers(self, fake: FakeImage) -> list[Digest]:
        return [layer.descriptor.digest for layer in fake.best.layers]

    def test_an_image_is_complete_again_when_its_fingerprint_says_that_something_came(self) -> None:
        fake = make_image()
        lost = self.layers(fake)[0]
        image = self.hold(lose(fake, lost))
        self.refuses(self.source.root, image, kind=ImageIncomplete)
        self.hold(fake)
        image = evolve(image, size=1)
        self.assertEqual(self.root_of(image), fake.root)
        self.assertEqual(self.fetch(image, lost), fake.contents[lost])

    def test_a_layer_that_is_shorter_than_it_should_be_does_not_count(self) -> None:
        fake = make_image()
        image = self.hold(fake)
        path = content_path(OWN, self.layers(fake)[1])
        self.files.host[path] = self.files.host[path][:-1]
        self.refuses(self.source.root, image, kind=ImageIncomplete)
        self.refuses(self.source.open, image, self.layers(fake)[1], kind=BlobUnknown)

    def test_one_platform_is_enough_and_the_others_are_unknown(self) -> None:
        fake = make_image(platforms=["linux/arm64", "linux/amd64"], held=["linux/amd64"])
        image = self.hold(fake)
        self.assertEqual(self.root_of(image), fake.root)
        self.refuses(self.source.open, image, fake.variants[0].descriptor.digest, kind=BlobUnknown)

    def test_what_the_engine_says_it_lacks_is_not_looked_for(self) -> None:
        fake = make_image(platforms=["linux/arm64", "linux/amd64"], held=["linux/amd64"])
        absent, present = (variant.descriptor for variant in fake.variants)
        children = (ChildManifest(absent, False, "image"), ChildManifest(present, True, "image"))
        self.root_of(evolve(self.hold(fake), children=children))
        self.assertNotIn(content_path(OWN, absent.digest), self.files.asked)
        self.assertIn(content_path(OWN, present.digest), self.files.asked)

    def test_attestations_alone_do_not_make_an_image_whole(self) -> None:
        fake = make_image()
        child = {**fake.root.to_json(), "annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
        index = json.dumps({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [child]}).encode()
        self.hold(fake)
        self.files.host[content_path(OWN, Digest.of(index))] = index
        image = EngineImage(Digest.of(index), ImageStore.CONTAINERD)
        self.refuses(self.source.root, image, kind=ImageIncomplete)
        self.assertEqual(self.fetch(image, fake.root.digest), fake.root_bytes)

    def test_damaged_documents_are_never_given(self) -> None:
        fake = make_image()
        image = self.hold(fake)
        for digest in (fake.root.digest, Digest.of(fake.best.config)):
            path, right = content_path(OWN, digest), fake.contents[digest]
            self.files.host[path] = right.replace(b"layers", b"leyers")
            self.refuses(self.source.root, image, kind=ManifestUnknown)
            self.refuses(self.source.open, image, digest, kind=BlobUnknown)
            self.files.host[path] = right
            self.root_of(image)
            self.files.host[path] = right.replace(b"layers", b"leyers")
            self.refuses(self.source.open, image, digest, kind=BlobUnknown)
            self.refuses(self.source.root, image, kind=ManifestUnknown)
            self.files.host[path] = right

    def test_a_blob_that_the_engine_has_removed_is_unknown_and_found_when_it_is_back(self) -> None:
        fake = make_image()
        image = self.hold(fake)
        self.root_of(image)
        digest = self.layers(fake)[0]
        data = self.files.host.pop(content_path(OWN, digest))
        self.refuses(self.source.open, image, digest, kind=BlobUnknown)
        self.refuses(self.source.root, image, kind=ImageIncomplete)
        self.files.host[content_path(OWN, digest)] = data
        self.assertEqual(self.fetch(image, digest), data)
        self.assertEqual(self.root_of(image), fake.root)

    def test_the_content_may_be_that_of_the_system_s_containerd(self) -> None:
        fake = make_image()
        image = self.hold(fake, SYSTEM)
        self.assertEqual(self.root_of(image), fake.root)
        self.engine.told = evolve(INFO, containerd_address="/run/containerd/containerd.sock")
        self.files.asked.clear()
        self.fetch(image, fake.root.digest)
        self.assertEqual(self.files.asked, [content_path(SYSTEM, fake.root.digest)])

    def test_the_first_way_to_the_files_that_works_is_taken(self) -> None:
        fake = make_image()
        image = self.hold(fake)
        unreachable, empty = FakeEngineFiles(dict(self.files.host)), FakeEngineFiles({})
        unreachable.unreachable = True
        self.source = self.make(unreachable, empty, self.files)
        self.assertEqual(self.root_of(image), fake.root)
        for digest, data in fake.contents.items():
            self.assertEqual(self.fetch(image, digest), data)
        self.files.unreachable, unreachable.unreachable = True, False
        for digest, data in fake.contents.items():
            self.assertEqual(self.fetch(image, digest), data)

    def test_it_does_not_serve_what_it_cannot_reach_or_does_not_know(self) -> None:
        fake = make_image()
        image = self.hold(fake)
        self.files.unreachable = True
        self.refuses(self.source.root, image, kind=ManifestUnknown)
        self.files.unreachable = False
        for store in (ImageStore.CLASSIC, ImageStore.PODMAN):
            self.engine.told = evolve(INFO, store=store)
            self.refuses(self.make(self.files).root, image, kind=ManifestUnknown)
            self.refuses(self.make(self.files).open, image, fake.root.digest, kind=BlobUnknown)

    def test_an_engine_that_is_down_is_told_as_that(self) -> None:
        async def down() -> EngineInfo:
            raise EngineUnavailable("the engine is down")

        self.engine.info = down  # type: ignore[method-assign]
        self.refuses(self.source.root, self.hold(make_image()), kind=EngineUnavailable)

    def test_a_stop_ends_the_examination_of_an_image(self) -> None:
        never: Deferred[bytes] = Deferred()
        self.files.read = lambda path, limit: never  # type: ignore[assignment,method-assign,return-value]
        image = self.hold(make_image())
        waiting = Deferred.fromCoroutine(self.source.root(image, Trace()))
        self.result(self.source.shutdown())
        self.failureResultOf(waiting, CancelledError)

    def test_what_belongs_to_the_image_is_remembered_across_restarts(self) -> None:
        fake = make_image()
        image = self.hold(fake)
        self.root_of(image)
        for digest in fake.contents:
            self.assertEqual([known.id for known in self.map.images_with(digest)], [image.id])
        self.assertEqual(self.map.root_of(image), fake.root)
