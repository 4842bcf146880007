"""While the engine pulls for long, nodes are told what it will bring, and given what has come."""

from twisted.internet.defer import CancelledError, Deferred

from k3dreg.docker.image import ImageStore
from k3dreg.formats.basic_auth import BasicAuth, registry_auth
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown, K3dregError, ManifestUnknown
from k3dreg.oci.reference import Reference
from k3dreg.registry.pull_in_progress import EARLY
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import ServedManifest
from tests.fakes.engine import PullError
from tests.fakes.images import FakeImage, make_image
from tests.fakes.pulling import HELLO, PullCase, by_digest


class SlowPullCase(PullCase):
    def image(self) -> FakeImage:
        image = make_image(platforms=["linux/amd64", "linux/arm64"])
        self.engine.upstream[str(HELLO)] = image
        self.engine.pull_gate.shut()
        return image

    def ask(self, reference: Reference = HELLO) -> Deferred[ServedManifest]:
        asked: Deferred[ServedManifest] = self.begin(self.registry.manifest(reference, None, Trace()))
        return asked

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.engine.flush()

    def reading(self, served: ServedManifest) -> Deferred[bytes]:
        async def read() -> bytes:
            return await (await served.open()).read()

        reading: Deferred[bytes] = self.begin(read())
        return reading

    def blob(self, digest: Digest) -> Deferred[bytes]:
        async def read() -> bytes:
            return await (await self.registry.blob(HELLO.repository, digest, Trace())).read()

        reading: Deferred[bytes] = self.begin(read())
        return reading


class SlowPullTests(SlowPullCase):
    def early(self) -> tuple[FakeImage, ServedManifest]:
        image = self.image()
        asked = self.ask()
        self.pass_time(EARLY - 1)
        self.assertNoResult(asked)
        self.pass_time(1.1)
        return image, self.successResultOf(asked)

    def test_a_pull_that_takes_long_is_answered_by_what_its_registry_says(self) -> None:
        image, served = self.early()
        self.assertEqual(served.descriptor.digest, image.root.digest)
        self.assertEqual(served.descriptor.size, len(image.index))
        self.assertEqual(len(self.engine.pulls), 1)

    def test_a_pull_that_does_not_never_asks_the_registry_twice(self) -> None:
        self.image()
        asked = self.ask()
        self.engine.pull_gate.open()
        self.successResultOf(asked)
        self.assertEqual(self.engine.distributions, [])

    def test_a_herd_asks_the_registry_once(self) -> None:
        self.image()
        asked = [self.ask() for _ in range(10)]
        self.pass_time(EARLY + 0.1)
        for each in asked:
            self.successResultOf(each)
        self.assertEqual((len(self.engine.distributions), len(self.engine.pulls)), (1, 1))

    def test_each_part_is_given_when_it_has_come_while_others_are_still_on_their_way(self) -> None:
        image, served = self.early()
        variant = image.variants[0]
        index = self.reading(self.successResultOf(self.ask(by_digest(served.descriptor.digest))))
        self.assertNoResult(index)
        self.arrived.blobs[image.root.digest] = image.index
        self.pass_time(1)
        self.assertEqual(self.successResultOf(index), image.index)
        self.arrived.blobs[variant.descriptor.digest] = variant.manifest
        child = self.successResultOf(self.ask(by_digest(variant.descriptor.digest)))
        self.assertEqual(self.successResultOf(self.reading(child)), variant.manifest)
        here, coming = variant.layers[0], variant.layers[1]
        self.arrived.blobs[here.descriptor.digest] = here.blob
        waiting = self.blob(coming.descriptor.digest)
        self.assertEqual(self.successResultOf(self.blob(here.descriptor.digest)), here.blob)
        self.assertNoResult(waiting)
        self.engine.pull_gate.open()
        self.pass_time(1)
        self.assertEqual(self.successResultOf(waiting), coming.blob)

    def test_what_the_engine_does_not_show_is_given_when_the_pull_has_ended(self) -> None:
        image, served = self.early()
        reading = self.reading(served)
        self.pass_time(5)
        self.assertNoResult(reading)
        self.engine.pull_gate.open()
        self.pass_time(1)
        self.assertEqual(self.successResultOf(reading), image.index)

    def test_a_pull_that_fails_after_all_fails_those_who_wait_for_its_parts(self) -> None:
        _, served = self.early()
        reading = self.reading(served)
        self.engine.upstream[str(HELLO)] = PullError(200, "unknown blob")
        self.engine.pull_gate.open()
        self.pass_time(1)
        self.failureResultOf(reading, K3dregError)

    def test_the_reason_is_the_one_that_the_pull_with_these_credentials_gave(self) -> None:
        self.image()
        shown = BasicAuth("someone", "secret")
        asked = self.begin(self.registry.manifest(HELLO, shown, Trace()))
        self.pass_time(EARLY + 0.1)
        reading = self.reading(self.successResultOf(asked))
        self.engine.upstream[str(HELLO)] = PullError(200, "unknown blob")
        self.engine.pull_gate.open()
        self.pass_time(1)
        self.assertIn("unknown blob", str(self.failureResultOf(reading, K3dregError).value))
        self.assertEqual(self.engine.auths, [registry_auth(shown, "docker.io")])  # nor was it tried without them

    def test_wrong_bytes_are_not_given(self) -> None:
        image, served = self.early()
        self.arrived.blobs[image.root.digest] = image.index.replace(b"amd64", b"arm64")
        self.failureResultOf(self.reading(served), K3dregError)

    def test_a_digest_nobody_expects_is_unknown(self) -> None:
        self.early()
        self.failureResultOf(self.blob(Digest.of(b"nothing")), BlobUnknown)

    def test_a_registry_that_says_no_is_believed_only_through_the_pull(self) -> None:
        self.image()
        asked = self.ask()
        self.engine.upstream[str(HELLO)] = PullError(404, "manifest unknown: manifest unknown")
        self.pass_time(EARLY + 0.1)
        self.assertNoResult(asked)
        self.engine.pull_gate.open()
        self.failureResultOf(asked, ManifestUnknown)

    def test_who_leaves_stops_waiting_and_the_pull_goes_on(self) -> None:
        _, served = self.early()
        reading = self.reading(served)
        reading.cancel()
        self.failureResultOf(reading)
        self.assertEqual([call for call in self.clock.getDelayedCalls() if call.getTime() < EARLY + 2], [])
        self.assertEqual(self.engine.abandoned, [])

    def test_a_stop_ends_the_question_to_the_registry(self) -> None:
        self.image()
        self.engine.silent.add(str(HELLO))
        asked = self.ask()
        self.pass_time(EARLY + 0.1)
        self.assertEqual((len(self.engine.distributions), self.engine.abandoned), (1, []))
        self.in_progress.shutdown()
        self.engine.flush()
        self.assertEqual(len(self.engine.abandoned), 1)
        self.failureResultOf(asked, CancelledError)


class SlowClassicPullTests(SlowPullCase):
    store_kind = ImageStore.CLASSIC

    def test_the_end_of_the_pull_is_waited_for_since_the_manifest_is_made_of_what_it_brings(self) -> None:
        self.image()
        asked = self.ask()
        self.pass_time(EARLY + 0.1)
        self.assertNoResult(asked)
        self.engine.pull_gate.open()
        self.successResultOf(asked)
        self.assertEqual(self.engine.distributions, [])
