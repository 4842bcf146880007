"""The use case of a pull, from a reference to the last byte, out of an engine in memory into a store on disk."""

import json
from pathlib import Path
from typing import Literal

from attrs import evolve
from twisted.internet.defer import Deferred

from k3dreg.docker.image import ImageStore
from k3dreg.formats.basic_auth import BasicAuth, Credentials
from k3dreg.oci import media_types
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    ArchiveError,
    AuthenticationRequired,
    BlobUnknown,
    Denied,
    EngineError,
    EngineUnavailable,
    ImageIncomplete,
    K3dregError,
    ManifestUnknown,
    StoreFull,
)
from k3dreg.reporting.trace import Trace
from tests.fakes.engine import FakeEngine, PullError, SaveFault
from tests.fakes.images import FakeImage, lose, make_image, make_layer
from tests.fakes.pulling import HELLO, PullCase, by_digest
from tests.fakes.stores import fill_disk_after


class Host:
    """This host has no credentials, and hears when some were not taken."""

    def __init__(self) -> None:
        self.not_taken: list[str] = []

    async def credentials(self, registry: str) -> Credentials | None:
        raise NotImplementedError

    async def registry_auth(self, registry: str) -> str:
        return ""

    def refused(self, registry: str) -> None:
        self.not_taken.append(registry)


class ContainerdStoreTests(PullCase):
    def test_a_node_gets_the_very_bytes_that_docker_pulled(self) -> None:
        image = self.engine.add(make_image())
        got = self.pull()
        self.assertEqual(got[0], image.root.digest)
        self.assertEqual(set(got), set(image.contents))
        self.assertEqual(len(self.engine.saves), 1)

    def test_a_head_of_a_tag_costs_one_inspection_and_no_export(self) -> None:
        image = self.engine.add(make_image())
        self.assertEqual(self.manifest().descriptor.digest, image.root.digest)
        self.assertEqual(self.engine.saves, [])

    def test_what_only_the_upstream_has_is_pulled_first(self) -> None:
        self.engine.upstream[str(HELLO)] = make_image()
        self.pull()
        self.assertEqual(len(self.engine.pulls), 1)

    def test_the_second_pull_and_one_after_a_restart_export_nothing(self) -> None:
        self.engine.add(make_image())
        self.pull()
        self.pull()
        self.restart()
        self.pull()
        self.assertEqual(len(self.engine.saves), 1)
        self.assertEqual(self.trace.source, "cache")

    def test_a_rebuilt_image_is_served_at_once(self) -> None:
        self.engine.add(make_image())
        before = self.pull()
        rebuilt = self.engine.add(make_image(layers=[make_layer({"hello": b"hello, again\n"})]))
        after = self.pull()
        self.assertNotEqual(before[0], after[0])
        self.assertEqual(after[0], rebuilt.root.digest)

    def test_a_layer_that_was_here_is_not_written_again(self) -> None:
        base = make_layer({"base": b"b" * 10_000})
        self.engine.add(make_image(layers=[base]))
        self.pull()
        self.engine.add(make_image(layers=[base, make_layer({"app": b"a"})]))
        with_base = self.store.usage().bytes
        self.pull()
        self.assertLess(self.store.usage().bytes - with_base, 3_000)

    def test_of_an_index_the_platform_that_docker_holds_is_served_and_the_others_are_unknown_at_once(self) -> None:
        image = self.engine.add(make_image(platforms=["linux/amd64", "linux/arm64"]))
        self.pull()
        absent = image.variants[1].descriptor.digest
        for _ in range(3):
            self.failureResultOf(self.begin(self.registry.manifest(by_digest(absent), None, Trace())), ManifestUnknown)
        self.assertEqual(len(self.engine.saves), 1)

    def test_an_image_is_asked_for_by_its_index_digest(self) -> None:
        image = self.engine.add(make_image(platforms=["linux/amd64", "linux/arm64"]))
        served = self.manifest(by_digest(image.root.digest))
        self.assertEqual(served.descriptor.media_type, media_types.OCI_INDEX)

    def test_a_platform_that_came_later_is_served(self) -> None:
        image = self.engine.add(make_image(platforms=["linux/amd64", "linux/arm64"]))
        self.pull()
        self.engine.replace(evolve(image, held=frozenset({"linux/amd64", "linux/arm64"})))
        self.manifest()
        self.fetch_manifest(by_digest(image.root.digest))
        self.fetch_manifest(by_digest(image.variants[1].descriptor.digest))
        self.assertEqual(len(self.engine.saves), 2)

    def refused(self, status: int, words: str, shown: BasicAuth | None) -> K3dregError:
        self.engine.upstream[str(HELLO)] = PullError(status, words)
        asked = self.begin(self.registry.manifest(HELLO, shown, Trace()))
        error: K3dregError = self.failureResultOf(asked, K3dregError).value
        self.assertIn(words, str(error))
        self.clock.advance(60)
        return error

    def test_who_showed_no_credentials_is_asked_for_some_whatever_the_registry_calls_it(self) -> None:
        for status, words in ((500, "Head: no basic auth credentials"), (403, "denied: no permission")):
            error = self.refused(status, words, None)
            assert isinstance(error, AuthenticationRequired)
            self.assertTrue(error.challenge)

    def test_who_did_is_not_asked_again(self) -> None:
        shown = BasicAuth("someone", "wrong")
        error = self.refused(401, "unauthorized", shown)
        assert isinstance(error, AuthenticationRequired)
        self.assertFalse(error.challenge)
        self.assertIsInstance(self.refused(403, "denied: no permission", shown), Denied)

    def test_the_hosts_own_are_looked_for_anew_when_they_were_refused_and_a_clients_are_not(self) -> None:
        host = Host()
        self.use(host)
        self.refused(403, "denied: no permission", BasicAuth("someone", "wrong"))
        self.refused(404, "manifest unknown", None)
        self.assertEqual(host.not_taken, [])
        self.refused(401, "unauthorized", None)
        self.refused(403, "denied: no permission", None)
        self.assertEqual(host.not_taken, ["docker.io", "docker.io"])

    def test_a_digest_nobody_knows_is_a_fast_404_and_pulls_nothing(self) -> None:
        nowhere = Digest.of(b"nothing")
        self.failureResultOf(self.begin(self.registry.blob(HELLO.repository, nowhere, Trace())), BlobUnknown)
        self.assertEqual((self.engine.pulls, self.engine.saves), ([], []))

    def test_a_layer_asked_for_as_a_manifest_is_unknown(self) -> None:
        self.engine.add(make_image())
        layer = self.pull()[-1]
        self.failureResultOf(self.begin(self.registry.manifest(by_digest(layer), None, Trace())), ManifestUnknown)

    def test_an_image_that_lacks_layers_says_so(self) -> None:
        image = make_image()
        self.engine.add(lose(image, image.variants[0].layers[0].descriptor.digest))
        self.failureResultOf(self.begin(self.registry.manifest(HELLO, None, Trace())), ImageIncomplete)

    def test_twenty_who_ask_share_one_export(self) -> None:
        image = self.engine.add(make_image())
        served = self.manifest()
        self.engine.save_gate.shut()
        asked = [self.begin(served.open()) for _ in range(20)]
        self.engine.save_gate.open()
        for each in asked:
            self.assertEqual(self.successResultOf(each).digest, image.root.digest)
        self.assertEqual(len(self.engine.saves), 1)

    def test_who_leaves_does_not_stop_the_export(self) -> None:
        self.engine.add(make_image())
        served = self.manifest()
        self.engine.save_gate.shut()
        leaving, staying = self.begin(served.open()), self.begin(served.open())
        leaving.cancel()
        self.failureResultOf(leaving)
        self.engine.save_gate.open()
        self.successResultOf(staying)

    def test_parts_that_were_evicted_are_exported_again(self) -> None:
        self.engine.add(make_image())
        layer = self.pull()[-1]
        self.now(self.store.discard(layer))
        self.assertEqual(Digest.of(self.fetch(layer)), layer)
        self.assertEqual(len(self.engine.saves), 2)

    def test_parts_of_an_image_that_docker_has_deleted_are_served_while_they_are_here(self) -> None:
        image = self.engine.add(make_image())
        kept, lost = self.pull()[-2:]
        self.engine.remove(image)
        self.now(self.store.discard(lost))
        self.fetch(kept)
        self.failureResultOf(self.begin(self.registry.blob(HELLO.repository, lost, Trace())), BlobUnknown)

    def test_what_is_here_is_served_while_docker_is_away(self) -> None:
        self.engine.add(make_image())
        got = self.pull()
        self.engine.down = True
        for digest in got[1:]:
            self.fetch(digest)
        self.failureResultOf(self.begin(self.registry.manifest(HELLO, None, Trace())), EngineUnavailable)
        self.engine.down = False
        self.pull()


class OlderContainerdStoreTests(ContainerdStoreTests):
    """Before API 1.48 only the root's digest is known from an inspection."""

    api = "1.45"

    def test_a_head_of_a_tag_costs_one_inspection_and_no_export(self) -> None:
        image = self.engine.add(make_image())
        self.assertEqual(self.manifest().descriptor.digest, image.root.digest)
        self.manifest()
        self.assertEqual(len(self.engine.saves), 1)

    def test_an_image_that_lacks_layers_says_so(self) -> None:
        image = make_image()
        self.engine.add(lose(image, image.variants[0].layers[0].descriptor.digest))
        self.failureResultOf(self.begin(self.registry.manifest(HELLO, None, Trace())), ImageIncomplete)

    def test_twenty_who_ask_share_one_export(self) -> None:
        self.engine.add(make_image())
        self.engine.save_gate.shut()
        asked = [self.begin(self.registry.manifest(HELLO, None, Trace())) for _ in range(20)]
        self.engine.save_gate.open()
        self.assertEqual(len({self.successResultOf(each).descriptor.digest for each in asked}), 1)
        self.assertEqual(len(self.engine.saves), 1)

    def test_who_leaves_does_not_stop_the_export(self) -> None:
        self.engine.add(make_image())
        self.engine.save_gate.shut()
        leaving, staying = (self.begin(self.registry.manifest(HELLO, None, Trace())) for _ in range(2))
        leaving.cancel()
        self.failureResultOf(leaving)
        self.engine.save_gate.open()
        self.successResultOf(staying)


class ClassicStoreTests(PullCase):
    store_kind = ImageStore.CLASSIC

    def image(self) -> FakeImage:
        return self.engine.add(make_image())

    def test_a_node_gets_the_config_and_the_uncompressed_layers(self) -> None:
        image = self.image()
        got = self.pull()
        variant = image.variants[0]
        self.assertEqual(got[1:], [Digest.of(variant.config), *(layer.diff_id for layer in variant.layers)])

    def test_the_manifest_has_the_same_bytes_from_every_layout(self) -> None:
        self.image()
        first = self.fetch_manifest()
        document = json.loads(first)
        self.assertEqual(document["mediaType"], media_types.OCI_MANIFEST)
        self.assertEqual({layer["mediaType"] for layer in document["layers"]}, {media_types.OCI_LAYER})
        for api in ("1.41", "1.43", "1.45", "1.51"):
            self.engine = FakeEngine(self.store_kind, api=api)
            self.image()
            self.state = Path(self.mktemp())
            self.start()
            self.assertEqual(self.fetch_manifest(), first)

    def test_a_layer_that_comes_twice_is_served(self) -> None:
        layer = make_layer({"same": b"same"})
        self.engine.add(make_image(layers=[layer, make_layer({"other": b"o"}), layer]))
        self.assertEqual(len(self.pull()), 5)

    def test_nothing_that_no_node_asks_for_is_kept(self) -> None:
        self.image()
        got = self.pull()
        self.assertEqual(self.store.usage().count, len(set(got)))

    def test_the_second_pull_and_one_after_a_restart_export_nothing(self) -> None:
        self.image()
        self.pull()
        self.restart()
        self.pull()
        self.assertEqual(len(self.engine.saves), 1)

    def test_a_registrys_digest_cannot_be_had_and_costs_no_export(self) -> None:
        image = self.engine.upstream[str(HELLO)] = make_image()
        self.manifest()
        saves = len(self.engine.saves)
        asked = self.begin(self.registry.manifest(by_digest(image.root.digest), None, Trace()))
        error = self.failureResultOf(asked, ManifestUnknown).value
        self.assertIn("containerd image store", error.advice)
        self.assertEqual((len(self.engine.saves), len(self.engine.pulls)), (saves, 1))


class RemovedImageTests(PullCase):
    def test_an_image_that_docker_no_longer_has_is_forgotten(self) -> None:
        image = self.engine.add(make_image())
        root = self.manifest().descriptor.digest
        self.assertTrue(self.content_map.knows(root))
        self.engine.remove(image)
        self.failureResultOf(self.begin(self.registry.blob(HELLO.repository, root, Trace())), BlobUnknown)
        self.assertFalse(self.content_map.knows(root))


class LegacyLayoutTests(ClassicStoreTests):
    """Docker 20.10 to 24."""

    api = "1.41"


class BrokenExportTests(PullCase):
    def setUp(self) -> None:
        super().setUp()
        self.image = self.engine.add(make_image())
        self.size = len(self.engine.archive(self.image))

    def attempt(self, fault: SaveFault) -> int:
        """An export that breaks, and the next try, which works.  Returns how many parts the first did not give."""
        self.engine.save_fault = fault
        served = self.manifest()
        parts: list[Digest] = [*self.image.contents]
        failed = 0
        for digest in parts:
            asked = self.begin(self.registry.blob(HELLO.repository, digest, Trace()))
            asked.addCallback(lambda blob: Deferred.fromCoroutine(blob.read()))
            self.engine.flush()
            results: list[object] = []
            asked.addBoth(results.append)
            (result,) = results
            if isinstance(result, bytes):
                self.assertEqual(Digest.of(result), digest)
            else:
                failed += 1
        for digest in parts:
            kept = self.store.get(digest)
            if kept is not None:
                self.assertEqual(Digest.of(self.successResultOf(self.begin(kept.read()))), digest)
        self.engine.save_fault = None
        self.assertEqual(served.descriptor.digest, self.pull()[0])
        return failed

    def attempt_everywhere(self, kind: Literal["cut", "truncate"]) -> None:
        failed = []
        for after in range(0, self.size - 1024, self.size // 11):
            with self.subTest(after=after):
                self.state = Path(self.mktemp())
                self.start()
                failed.append(self.attempt(SaveFault(kind, after)))
        # Cut off at its very beginning it gives nothing; what came whole later on is verified, and is given.
        self.assertEqual(failed[0], len(self.image.contents))

    def test_an_export_may_be_cut_off_anywhere(self) -> None:
        self.attempt_everywhere("cut")

    def test_an_export_may_end_early_with_every_sign_of_success(self) -> None:
        self.attempt_everywhere("truncate")

    def test_an_export_without_room_says_what_is_full_and_what_to_do(self) -> None:
        fill_disk_after(self, 100)
        served = self.manifest()
        asked = self.begin(self.registry.blob(HELLO.repository, served.descriptor.digest, Trace()))
        self.engine.flush()
        error = self.failureResultOf(asked, StoreFull).value
        self.assertIn("has to be written to the disk before it can be served", str(error))
        self.assertIn("no room is left on the disk of the state directory", str(error))
        self.assertIn("--reader", error.advice)

    def test_dockers_error_in_the_archive_is_told(self) -> None:
        self.engine.save_fault = SaveFault("error", 512)
        served = self.manifest()
        error = self.failureResultOf(self.begin(served.open()), ArchiveError, EngineError).value
        self.assertIn("Docker", str(error))
        self.engine.save_fault = None
        self.pull()
