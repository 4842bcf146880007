from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred

from k3dreg.docker.image import EngineImage, EngineInfo, ImageStore
from k3dreg.engine_files.layout import LayerPaths, chain_ids
from k3dreg.images.content_map import ContentMap
from k3dreg.images.layer_store_source import LayerStoreSource
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown, ContentError, ManifestUnknown
from k3dreg.oci.manifest import make_image_manifest
from k3dreg.reporting.trace import Trace
from k3dreg.store.arrivals import READER_WAIT, WINDOW, Arrivals
from k3dreg.streaming.push_producer import ConsumerGone
from tests.fakes.consumers import Reader
from tests.fakes.databases import open_database
from tests.fakes.engine_files import FakeEngineFiles, FakeInfo
from tests.fakes.images import FakeImage, make_image, make_layer
from tests.fakes.stores import StoreTestCase, fill_disk_after, refuse_writes
from tests.fakes.tar_splits import split
from tests.fakes.workers import InlineWorkers

MiB = 1024 * 1024
INFO = EngineInfo("an-engine", "28.5.2", (1, 51), ImageStore.CLASSIC, "overlay2", "/var/lib/docker")
PATHS = LayerPaths.of(INFO)
assert PATHS is not None


def test_chains_are_named_as_the_spec_names_them() -> None:
    """image-spec 1.1, config.md: ChainID(A) = A; ChainID(A|B) = Digest(ChainID(A) + " " + B)."""
    a, b, c = (Digest.of(name) for name in (b"a", b"b", b"c"))
    ab = Digest.of(f"{a} {b}".encode())
    assert chain_ids([a, b, c]) == [a, ab, Digest.of(f"{ab} {c}".encode())]
    assert chain_ids([]) == []


class LayerStoreTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.files = FakeEngineFiles({})
        self.engine = FakeInfo(INFO)
        self.arrivals = Arrivals(self.store, InlineWorkers(self.clock))
        database = open_database(Path(self.mktemp()))
        self.addCleanup(database.close)
        self.map = ContentMap(database, InlineWorkers(self.clock))
        self.source = self.make(self.files)
        self.fake = make_image(layers=[make_layer({"a/b": b"one" * 100, "c": b"two"}), make_layer({"d": b"three"})])
        self.image = self.hold(self.fake)

    def make(self, *files: FakeEngineFiles) -> LayerStoreSource:
        workers = InlineWorkers(self.clock)
        return LayerStoreSource(self.engine, files, self.store, self.arrivals, self.map, workers, self.clock)

    def hold(self, fake: FakeImage) -> EngineImage:
        config, paths = fake.best.config, PATHS
        assert paths is not None
        identity = Digest.of(config)
        self.files.host[paths.config(identity)] = config
        diff_ids = [layer.diff_id for layer in fake.best.layers]
        for number, (layer, chain) in enumerate(zip(fake.best.layers, chain_ids(diff_ids), strict=True)):
            tar_split, contents = split(layer.diff)
            self.files.host[paths.about(chain, "tar-split.json.gz")] = tar_split
            self.files.host[paths.about(chain, "cache-id")] = f"cache{number}".encode()
            directory = paths.files(f"cache{number}")
            self.files.host[f"{directory}/.exists"] = b""
            self.files.host |= {f"{directory}/{name}": data for name, data in contents.items()}
        return EngineImage(identity, ImageStore.CLASSIC, diff_ids=tuple(diff_ids))

    def parts(self, fake: FakeImage) -> dict[Digest, bytes]:
        """What a node asks for after the manifest."""
        return {Digest.of(fake.best.config): fake.best.config, **{la.diff_id: la.diff for la in fake.best.layers}}

    def root_of(self, image: EngineImage | None = None) -> Any:
        return self.result(self.source.root(image or self.image, Trace()))

    def blob(self, digest: Digest, image: EngineImage | None = None) -> Any:
        return self.result(self.source.open(image or self.image, digest, Trace()))

    def fetch(self, digest: Digest, image: EngineImage | None = None) -> bytes:
        blob = self.blob(digest, image)
        reader = Reader()
        self.result(blob.send(reader, 0, blob.size))
        return reader.received

    def refuses(self, call: Callable[..., Any], *arguments: Any, kind: type[Exception]) -> Any:
        return self.failureResultOf(Deferred.fromCoroutine(call(*arguments, Trace())), kind).value

    def about(self, name: str, number: int = 0) -> str:
        assert PATHS is not None
        chain = chain_ids(self.image.diff_ids)[number]
        return (
            PATHS.about(chain, name) if name in ("tar-split.json.gz", "cache-id") else f"{PATHS.files('cache0')}/{name}"
        )

    def test_the_manifest_is_the_one_every_source_makes(self) -> None:
        root = self.root_of()
        config = self.fake.best.config
        expected, data = make_image_manifest(
            Descriptor("", Digest.of(config), len(config)),
            [Descriptor("", layer.diff_id, len(layer.diff)) for layer in self.fake.best.layers],
        )
        self.assertEqual(root, expected)
        self.assertEqual(self.fetch(root.digest), data)

    def test_the_manifest_is_known_without_a_layer_s_files(self) -> None:
        self.root_of()
        self.assertEqual(self.files.fills, 0)
        self.assertFalse([path for path in self.files.asked if path.endswith("/diff")])

    def test_every_part_is_right_and_layers_are_kept(self) -> None:
        self.root_of()
        for digest, data in self.parts(self.fake).items():
            self.assertEqual(self.fetch(digest), data)
            self.assertTrue(self.store.has(digest))
        self.assertEqual(self.files.fills, 2)
        self.assertEqual(self.fetch(self.fake.best.layers[0].diff_id), self.fake.best.layers[0].diff)
        self.assertEqual(self.files.fills, 2)

    def test_a_layer_that_is_there_twice_and_one_without_files_are_right(self) -> None:
        same, empty = make_layer({"x": b"x"}), make_layer({})
        fake = make_image(layers=[same, empty, same])
        image = self.hold(fake)
        self.assertEqual(len(json.loads(self.fetch(self.root_of(image).digest, image))["layers"]), 3)
        for digest, data in self.parts(fake).items():
            self.assertEqual(self.fetch(digest, image), data)

    def test_layers_of_another_image_are_not_measured_again(self) -> None:
        self.root_of()
        other = make_image(layers=self.fake.best.layers, labels={"another": "one"})
        image = self.hold(other)
        self.files.asked.clear()
        self.root_of(image)
        self.assertFalse([path for path in self.files.asked if "tar-split" in path])

    def test_a_layer_is_put_together_once_and_read_by_many_while_that_goes_on(self) -> None:
        layer = self.fake.best.layers[0]
        held: Deferred[None] = Deferred()
        self.files.held = held
        blobs = [self.blob(layer.diff_id) for _ in range(3)]
        readers = [Reader() for _ in blobs]
        sendings = [Deferred.fromCoroutine(b.send(r, 0, b.size)) for b, r in zip(blobs, readers, strict=True)]
        self.assertGreater(len(readers[0].received), 0)
        self.assertFalse(self.store.has(layer.diff_id))
        held.callback(None)
        for sending, reader in zip(sendings, readers, strict=True):
            self.successResultOf(sending)
            self.assertEqual(reader.received, layer.diff)
        self.assertEqual(self.files.fills, 1)

    def test_a_layer_is_served_where_none_can_be_kept(self) -> None:
        self.root_of()
        refuse_writes(self)
        for digest, data in self.parts(self.fake).items():
            for _ in range(2):  # a later reader starts anew
                self.assertEqual(self.fetch(digest), data)
        self.assertFalse(self.store.has(self.fake.best.layers[0].diff_id))

    def test_a_layer_is_served_when_the_disk_is_full_in_the_middle_of_it(self) -> None:
        fake = make_image(layers=[make_layer({name: os.urandom(3 * MiB) for name in "abcdefghijkl"}, compress=False)])
        image, layer = self.hold(fake), fake.best.layers[0]
        self.root_of(image)
        fill_disk_after(self, 5 * MiB)
        blob, reader, late = self.blob(layer.diff_id, image), Reader(1), Reader()
        first = Deferred.fromCoroutine(blob.send(reader, 0, blob.size))
        self.assertEqual(self.files.fills, 1)
        reader.eat(20 * MiB)
        # By now the first bytes are gone: a second reader gets a build of its own.
        other = self.blob(layer.diff_id, image)
        self.result(other.send(late, 0, other.size))
        self.assertEqual(late.received, layer.diff)
        self.assertEqual(self.files.fills, 2)
        self.assertNoResult(first)
        reader.eat(None)
        self.successResultOf(first)
        self.assertEqual(reader.received, layer.diff)
        self.assertFalse(self.store.has(layer.diff_id))
        self.assertEqual(self.staged(), [])

    def test_a_part_of_a_layer_is_served_where_none_can_be_kept(self) -> None:
        fake = make_image(layers=[make_layer({name: os.urandom(3 * MiB) for name in "abcdefghijkl"}, compress=False)])
        image, layer = self.hold(fake), fake.best.layers[0]
        self.root_of(image)
        refuse_writes(self)
        for start, stop in ((0, 10), (30 * MiB, 31 * MiB), (5, 8)):
            reader = Reader()
            self.result(self.blob(layer.diff_id, image).send(reader, start, stop))
            self.assertEqual(reader.received, layer.diff[start:stop])
            self.clock.advance(READER_WAIT)

    def test_a_layer_that_is_not_kept_waits_for_its_reader_within_bounds(self) -> None:
        fake = make_image(layers=[make_layer({name: os.urandom(3 * MiB) for name in "abcdefghijkl"}, compress=False)])
        image, layer = self.hold(fake), fake.best.layers[0]
        self.root_of(image)
        refuse_writes(self)
        blob = self.blob(layer.diff_id, image)
        self.clock.advance(READER_WAIT - 1)
        reader = Reader(1)
        sending = Deferred.fromCoroutine(blob.send(reader, 0, blob.size))
        reader.eat(1)
        self.assertLess(self.files.given, WINDOW + 7 * MiB)
        reader.leave()
        self.failureResultOf(sending, ConsumerGone)
        self.clock.advance(READER_WAIT)
        self.failureResultOf(Deferred.fromCoroutine(blob.send(Reader(), 0, blob.size)), ContentError)
        self.assertEqual(self.fetch(layer.diff_id, image), layer.diff)

    def test_wrong_bytes_that_are_not_kept_never_look_whole(self) -> None:
        self.root_of()
        refuse_writes(self)
        layer = self.fake.best.layers[0]
        self.files.host[self.about("c")] = b"owt"
        blob, reader = self.blob(layer.diff_id), Reader()
        self.failureResultOf(Deferred.fromCoroutine(blob.send(reader, 0, blob.size)), ContentError)
        self.assertLess(len(reader.received), blob.size)

    def test_wrong_bytes_never_look_whole_and_are_left_to_the_next_source(self) -> None:
        layer = self.fake.best.layers[0]
        self.files.host[self.about("c")] = b"Two"
        reader = Reader()
        blob = self.blob(layer.diff_id)
        self.failureResultOf(Deferred.fromCoroutine(blob.send(reader, 0, blob.size)), ContentError)
        self.assertLess(len(reader.received), len(layer.diff))
        self.assertFalse(self.store.has(layer.diff_id))
        self.assertEqual(self.staged(), [])
        self.refuses(self.source.open, self.image, layer.diff_id, kind=BlobUnknown)
        # The image's other layers are none the worse.
        self.assertEqual(self.fetch(self.fake.best.layers[1].diff_id), self.fake.best.layers[1].diff)
        # Some time later it is tried again.
        self.files.host[self.about("c")] = b"two"
        self.clock.advance(600)
        self.assertEqual(self.fetch(layer.diff_id), layer.diff)

    def test_one_who_asks_again_as_soon_as_it_failed_is_not_given_the_same(self) -> None:
        digest = self.fake.best.layers[0].diff_id
        held: Deferred[None] = Deferred()
        self.files.held = held
        blob = self.blob(digest)
        again: list[Any] = []
        sending = Deferred.fromCoroutine(blob.send(Reader(), 0, blob.size))
        sending.addErrback(
            lambda _: again.append(Deferred.fromCoroutine(self.source.open(self.image, digest, Trace())))
        )
        del self.files.host[self.about("c")]
        held.callback(None)
        self.failureResultOf(again[0], BlobUnknown)

    def test_a_layer_whose_directory_is_gone_is_unknown_before_a_byte_is_sent(self) -> None:
        assert PATHS is not None
        self.root_of()
        for path in [path for path in self.files.host if path.startswith(self.about(""))]:
            del self.files.host[path]
        self.refuses(self.source.open, self.image, self.fake.best.layers[0].diff_id, kind=BlobUnknown)
        # The image may be gone, so it is examined again.
        del self.files.host[PATHS.config(self.image.id)]
        self.refuses(self.source.root, self.image, kind=ManifestUnknown)

    def test_a_cache_id_never_leads_elsewhere(self) -> None:
        for name in (b"../../etc", b"..", b".", b"", b"a/b", b"a\0"):
            self.files.host[self.about("cache-id")] = name
            self.refuses(self.source.open, self.image, self.fake.best.layers[0].diff_id, kind=BlobUnknown)
        self.assertFalse([path for path in self.files.asked if "etc" in path])

    def test_what_is_damaged_or_missing_is_left_to_the_next_source(self) -> None:
        assert PATHS is not None
        for path, data in [
            (PATHS.config(self.image.id), self.fake.best.config + b" "),
            (PATHS.config(self.image.id), None),
            (self.about("tar-split.json.gz"), b"nonsense"),
            (self.about("tar-split.json.gz", 1), None),
        ]:
            right = self.files.host.pop(path)
            if data is not None:
                self.files.host[path] = data
            self.refuses(self.make(self.files).root, self.image, kind=ManifestUnknown)
            self.refuses(self.make(self.files).open, self.image, self.image.id, kind=BlobUnknown)
            self.files.host[path] = right
        self.root_of()

    def test_what_is_not_a_part_of_the_image_is_unknown(self) -> None:
        other = make_image(layers=[make_layer({"other": b"other"})])
        self.hold(other)
        for digest in (*self.parts(other), Digest.of(b"x")):
            self.refuses(self.source.open, self.image, digest, kind=BlobUnknown)

    def test_other_stores_and_drivers_are_not_served(self) -> None:
        for info in (
            evolve(INFO, driver="btrfs"),
            evolve(INFO, store=ImageStore.CONTAINERD),
            evolve(INFO, store=ImageStore.PODMAN),
        ):
            self.engine.told = info
            self.refuses(self.source.root, self.image, kind=ManifestUnknown)
        self.assertEqual(self.files.asked, [])

    def test_the_first_way_to_the_files_that_works_is_taken(self) -> None:
        unreachable = FakeEngineFiles({})
        unreachable.unreachable = True
        self.source = self.make(unreachable, FakeEngineFiles({}), self.files)
        self.root_of()
        layer = self.fake.best.layers[0]
        self.assertEqual(self.fetch(layer.diff_id), layer.diff)

    def test_stopping_gives_up_what_is_under_way(self) -> None:
        self.files.held = Deferred()
        layer = self.fake.best.layers[0]
        blob = self.blob(layer.diff_id)
        sending = Deferred.fromCoroutine(blob.send(Reader(), 0, blob.size))
        self.successResultOf(self.arrivals.shutdown())
        self.failureResultOf(sending, ContentError)
        self.assertEqual(self.staged(), [])

    def test_a_stop_ends_the_examination_of_an_image(self) -> None:
        never: Deferred[bytes] = Deferred()
        self.files.read = lambda path, limit: never  # type: ignore[assignment,method-assign,return-value]
        waiting = Deferred.fromCoroutine(self.source.root(self.image, Trace()))
        self.result(self.source.shutdown())
        self.failureResultOf(waiting, CancelledError)

    def test_what_belongs_to_the_image_is_remembered_across_restarts(self) -> None:
        root = self.root_of()
        for digest in (root.digest, *self.parts(self.fake)):
            self.assertEqual([known.id for known in self.map.images_with(digest)], [self.image.id])
        self.assertEqual(self.map.root_of(self.image), root)
        self.assertTrue(self.store.has(root.digest))
        self.assertTrue(self.store.has(self.image.id))
