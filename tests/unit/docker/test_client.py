"""Tests of k3dreg.docker.client and k3dreg.docker.connection, against the engine in memory."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import DNSLookupError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from k3dreg.docker.client import PREPARATION, EngineClient
from k3dreg.docker.events import follow_images
from k3dreg.docker.image import EngineImage, ImageStore, PullProgress
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    AuthenticationRequired,
    EngineError,
    EngineSilent,
    EngineTooOld,
    EngineUnavailable,
    ImageNotInEngine,
    ManifestUnknown,
)
from k3dreg.oci.user_agent import USER_AGENT
from k3dreg.streaming.response_body import read_whole
from tests.fakes.engine import FakeEngine, PullError, SaveFault
from tests.fakes.images import FakeImage, lose, make_image, make_layer

_T = TypeVar("_T")
_SILENCE = 30.0
_NAME = "docker.io/library/hello:1"


class _EngineCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.use(FakeEngine())

    def use(self, fake: FakeEngine) -> None:
        self.fake = fake
        self.engine: EngineClient = fake.client(self.clock, silence=_SILENCE)

    def start(self, coroutine: Coroutine[Any, Any, _T]) -> Deferred[_T]:
        return Deferred.fromCoroutine(coroutine)

    def do(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        result: _T = self.successResultOf(self.start(coroutine))
        return result

    def fails(self, coroutine: Coroutine[Any, Any, Any], kind: type[BaseException]) -> Any:
        return self.failureResultOf(self.start(coroutine), kind).value

    async def saved(self, image: FakeImage) -> bytes:
        return await read_whole(await self.engine.save(image.id(self.fake.store)), 10**9)


@implementer(IAgent)
class _NameUnknown:
    """The engine's host has a name that does not resolve (`tcp://nowhere:2375`)."""

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        return fail(DNSLookupError("no results for hostname lookup: nowhere"))


class Addressing(_EngineCase):
    def test_a_host_whose_name_does_not_resolve_is_an_engine_that_is_not_there(self) -> None:
        self.engine = EngineClient(_NameUnknown(), self.clock, description="tcp://nowhere:2375")
        self.assertIn("resolve", str(self.fails(self.engine.info(), EngineUnavailable)))


class Introduction(_EngineCase):
    def test_the_engine_is_told_which_k3dreg_asks(self) -> None:
        self.do(self.engine.info())
        self.assertEqual(set(self.fake.agents), {USER_AGENT})


class Versions(_EngineCase):
    def test_the_newest_version_that_both_know_is_used(self) -> None:
        for theirs, used in (("1.41", (1, 41)), ("1.45", (1, 45)), ("1.51", (1, 51)), ("1.99", (1, 51))):
            self.use(FakeEngine(api=theirs))
            self.assertEqual(self.do(self.engine.info()).api_version, used)

    def test_an_engine_is_greeted_once(self) -> None:
        for _ in range(3):
            self.fails(self.engine.inspect("x:1"), ImageNotInEngine)
        self.assertEqual((self.fake.pings, self.fake.infos), (1, 1))

    def test_an_engine_that_is_too_old_is_refused_with_advice(self) -> None:
        self.use(FakeEngine(api="1.40"))
        error = self.fails(self.engine.info(), EngineTooOld)
        self.assertIn("20.10", error.advice)

    def test_an_engine_that_is_too_new_is_refused(self) -> None:
        self.use(FakeEngine(api="1.99", min_api="1.60"))
        error = self.fails(self.engine.info(), EngineTooOld)
        self.assertIn("newer k3dreg", error.advice)

    def test_what_does_not_greet_as_an_engine_is_an_error(self) -> None:
        self.use(FakeEngine(api="none.at.all"))
        self.fails(self.engine.inspect("x:1"), EngineError)

    def test_an_engine_that_was_downgraded_is_greeted_again_and_asked_again(self) -> None:
        image = self.fake.add(make_image())
        self.do(self.engine.inspect(_NAME))
        self.fake.api = "1.44"
        self.assertEqual(self.do(self.engine.inspect(_NAME)).id, image.root.digest)
        self.assertEqual(self.do(self.engine.info()).api_version, (1, 44))

    def test_an_engine_that_was_lost_is_greeted_again(self) -> None:
        self.do(self.engine.info())
        self.fake.down = True
        self.fails(self.engine.inspect("x:1"), EngineUnavailable)
        self.fake.down = False
        self.fake.api = "1.48"
        self.assertEqual(self.do(self.engine.info()).api_version, (1, 48))


class Losses(_EngineCase):
    def test_a_refused_connection_says_what_to_do(self) -> None:
        self.fake.down = True
        error = self.fails(self.engine.info(), EngineUnavailable)
        self.assertIn("not running", str(error))
        self.assertEqual(error.advice, "start Docker")

    def test_an_engine_that_comes_back_is_found_at_the_next_call(self) -> None:
        self.fake.add(make_image())
        self.fake.down = True
        self.fails(self.engine.inspect(_NAME), EngineUnavailable)
        self.fake.down = False
        self.do(self.engine.inspect(_NAME))

    def test_an_engine_that_comes_back_with_its_other_store_is_seen_to(self) -> None:
        for before, after in (
            (ImageStore.CLASSIC, ImageStore.CONTAINERD),
            (ImageStore.CONTAINERD, ImageStore.CLASSIC),
        ):
            self.use(FakeEngine(before))
            image = self.fake.add(make_image())
            self.do(self.engine.inspect(_NAME))
            self.fake.store = after
            found = self.do(self.engine.inspect(_NAME))
            self.assertEqual((found.store, found.id), (after, image.id(after)))
            self.assertEqual(self.do(self.engine.info()).store, after)

    def test_an_engine_that_does_not_answer_is_given_up_after_the_silence_limit(self) -> None:
        self.do(self.engine.info())
        self.fake.pull_gate.shut()
        pulling = self.start(self.engine.pull(_NAME, "", lambda _: None))
        self.clock.advance(_SILENCE - 0.1)
        self.assertNoResult(pulling)
        self.clock.advance(0.1)
        self.failureResultOf(pulling, EngineSilent)
        self.assertEqual(self.fake.infos, 1)
        self.do(self.engine.info())
        self.assertEqual(self.fake.infos, 2)

    def test_those_who_ask_the_same_while_nothing_is_answered_share_the_next_inspection(self) -> None:
        image = self.fake.add(make_image())
        self.do(self.engine.inspect(_NAME))
        self.fake.inspects.clear()
        self.fake.inspect_gate.shut()
        asked = [self.start(self.engine.inspect(_NAME)) for _ in range(20)]
        self.assertEqual(len(self.fake.inspects), 1)
        self.fake.inspect_gate.open()
        self.assertEqual({self.successResultOf(each).id for each in asked}, {image.id(self.fake.store)})
        self.assertEqual(len(self.fake.inspects), 2)

    def test_nobody_is_told_what_was_so_before_he_asked(self) -> None:
        old = self.fake.add(make_image())
        self.do(self.engine.inspect(_NAME))
        self.fake.inspect_gate.shut()
        early = self.start(self.engine.inspect(_NAME))
        new = self.fake.add(make_image(labels={"built": "anew"}))
        late = self.start(self.engine.inspect(_NAME))
        self.fake.inspect_gate.open()
        self.assertEqual(self.successResultOf(early).id, old.id(self.fake.store))
        self.assertEqual(self.successResultOf(late).id, new.id(self.fake.store))

    def test_one_who_leaves_leaves_the_others_their_answer(self) -> None:
        self.fake.add(make_image())
        self.do(self.engine.inspect(_NAME))
        self.fake.inspect_gate.shut()
        asked = [self.start(self.engine.inspect(_NAME)) for _ in range(4)]
        for leaving in (asked[0], asked[2]):
            leaving.cancel()
            self.failureResultOf(leaving, CancelledError)
        self.fake.inspect_gate.open()
        for staying in (asked[1], asked[3]):
            self.successResultOf(staying)

    def test_answers_that_make_no_sense_are_errors_of_the_engine(self) -> None:
        # An image's archive is the least like JSON that the API has.
        image = self.fake.add(make_image())
        response = self.do(self.engine.request("GET", "/images/get", params={"names": str(image.root.digest)}))
        self.assertEqual(response.code, 200)
        error = self.fails(self.engine.request("GET", "/no/such/thing"), EngineError)
        self.assertEqual((error.status, str(error)), (404, "page not found"))


class Inspections(_EngineCase):
    def inspect(self, name: str = _NAME) -> EngineImage:
        return self.do(self.engine.inspect(name))

    def test_an_image_is_found_by_tag_by_digest_and_by_id(self) -> None:
        image = self.fake.add(make_image("ghcr.io/acme/tool:1.0"))
        root = image.root.digest
        for name in ("ghcr.io/acme/tool:1.0", f"ghcr.io/acme/tool@{root}", str(root)):
            self.assertEqual(self.inspect(name).id, root)

    def test_the_root_of_an_image_is_known_where_the_engine_tells_it(self) -> None:
        image = make_image(platforms=["linux/amd64", "linux/arm64"])
        for store, api, known in (
            (ImageStore.CONTAINERD, "1.48", True),
            (ImageStore.CONTAINERD, "1.47", False),
            (ImageStore.CLASSIC, "1.51", False),
        ):
            self.use(FakeEngine(store, api))
            self.fake.add(image)
            found = self.inspect()
            self.assertEqual(found.descriptor, image.root if known else None)
            self.assertEqual([c.available for c in found.children], [True, False] if known else [])
            self.assertEqual(found.id, image.id(store))
            self.assertEqual(found.diff_ids, tuple(layer.diff_id for layer in image.best.layers))

    def test_an_image_that_was_built_again_is_another_at_once(self) -> None:
        self.fake.add(make_image())
        before = self.inspect()
        after = self.fake.add(make_image(labels={"built": "again"}))
        self.assertNotEqual(self.inspect(), before)
        self.assertEqual(self.inspect().id, after.root.digest)

    def test_an_incomplete_image_is_told_by_its_children(self) -> None:
        image = make_image(indexed=True)
        self.fake.add(lose(image, image.best.layers[0].descriptor.digest))
        found = self.inspect()
        self.assertEqual(([c.available for c in found.children], found.platform), ([False], None))

    def test_podmans_images_go_by_their_configs_digest_and_their_full_names(self) -> None:
        self.use(FakeEngine(ImageStore.PODMAN, "1.44"))
        image = self.fake.add(make_image())
        found = self.inspect()
        self.assertEqual((found.store, found.id), (ImageStore.PODMAN, Digest.of(image.best.config)))
        self.assertEqual(found.tags, (image.name,))

    def test_an_unknown_image_is_not_in_the_engine(self) -> None:
        self.fails(self.engine.inspect("nope:1"), ImageNotInEngine)

    def test_a_name_that_no_engine_accepts_is_not_in_the_engine(self) -> None:
        for store in ImageStore:
            self.use(FakeEngine(store))
            self.fails(self.engine.inspect("UPPER"), ImageNotInEngine)

    def test_a_hostile_name_does_not_leave_the_path_of_images(self) -> None:
        self.do(self.engine.info())
        for name in ("", "..", "../../info?", "a/../../b", "/a", "a//b", "."):
            self.fails(self.engine.inspect(name), ImageNotInEngine)
        self.assertEqual(self.fake.inspects, [])
        self.fails(self.engine.inspect("a?b#c%2e d/\u00e9"), ImageNotInEngine)
        self.assertEqual(self.fake.inspects, ["a?b#c%2e d/\u00e9"])


class Pulls(_EngineCase):
    def pull(self, name: str = _NAME, auth: str = "") -> list[PullProgress]:
        told: list[PullProgress] = []
        self.do(self.engine.pull(name, auth, told.append))
        return told

    def test_a_pull_brings_the_image_and_tells_its_progress(self) -> None:
        image = self.fake.upstream[_NAME] = make_image()
        told = self.pull()
        size = sum(layer.descriptor.size for layer in image.best.layers)
        self.assertEqual((told[-1].current, told[-1].total), (size, size))
        self.assertEqual(self.do(self.engine.inspect(_NAME)).id, image.root.digest)

    def test_a_reference_is_always_pulled_with_a_tag_or_a_digest(self) -> None:
        digest = f"sha256:{'0' * 64}"
        for asked, pulled in (
            ("h.io:5000/a", "h.io:5000/a:latest"),
            ("h.io:5000/a:2", "h.io:5000/a:2"),
            (f"h.io:5000/a@{digest}", f"h.io:5000/a@{digest}"),
            (f"h.io:5000/a:2@{digest}", f"h.io:5000/a@{digest}"),
        ):
            self.fails(self.engine.pull(asked, "", lambda _: None), ManifestUnknown)
            self.assertEqual(self.fake.pulls.pop(), pulled)

    def test_credentials_are_sent_only_when_there_are_some(self) -> None:
        self.fake.upstream[_NAME] = make_image()
        self.pull(auth="")
        self.pull(auth="eyJ9-_==")
        self.assertEqual(self.fake.auths, [None, "eyJ9-_=="])

    def test_refusals_are_told_apart_in_status_and_in_stream(self) -> None:
        for status in (500, 200):
            self.fake.upstream[_NAME] = PullError(status, "Head: no basic auth credentials")
            error = self.fails(self.engine.pull(_NAME, "", lambda _: None), AuthenticationRequired)
            self.assertEqual(str(error), "Head: no basic auth credentials")

    def test_a_pull_whose_stream_breaks_off_is_an_error(self) -> None:
        self.fake.upstream[_NAME] = make_image()
        self.fake.cut_pulls = True
        self.fails(self.engine.pull(_NAME, "", lambda _: None), EngineUnavailable)

    def test_the_engine_being_down_is_not_taken_for_a_refusal(self) -> None:
        self.do(self.engine.info())
        self.fake.down = True
        self.fails(self.engine.pull(_NAME, "", lambda _: None), EngineUnavailable)

    def test_cancelling_makes_the_engine_stop(self) -> None:
        self.fake.upstream[_NAME] = make_image()
        self.fake.pull_gate.shut()
        pulling = self.start(self.engine.pull(_NAME, "", lambda _: None))
        pulling.cancel()
        self.failureResultOf(pulling, CancelledError)
        self.fake.flush()
        self.assertEqual(self.fake.abandoned, ["/v1.51/images/create"])
        self.fake.pull_gate.open()
        self.assertIsNone(self.fake.find(_NAME))

    def test_cancelling_a_pull_does_not_forget_the_engine(self) -> None:
        self.do(self.engine.info())
        self.fake.pull_gate.shut()
        self.start(self.engine.pull(_NAME, "", lambda _: None)).addErrback(lambda _: None).cancel()
        self.do(self.engine.info())
        self.assertEqual(self.fake.infos, 1)

    def test_a_pull_that_nobody_can_be_told_of_is_given_up(self) -> None:
        self.fake.upstream[_NAME] = make_image()
        self.fake.pulls_go_on = True
        self.fails(self.engine.pull(_NAME, "", self.refuse), ValueError)
        self.fake.flush()
        self.assertEqual(self.fake.abandoned, ["/v1.51/images/create"])

    def test_an_error_ends_a_pull_whose_stream_does_not_end(self) -> None:
        self.fake.upstream[_NAME] = PullError(200, "Head: no basic auth credentials")
        self.fake.pulls_go_on = True
        self.fails(self.engine.pull(_NAME, "", lambda _: None), AuthenticationRequired)
        self.fake.flush()
        self.assertEqual(self.fake.abandoned, ["/v1.51/images/create"])

    def test_events_that_nobody_can_be_told_of_are_given_up(self) -> None:
        self.fails(follow_images(self.engine, self.refuse), ValueError)
        self.fake.flush()
        self.assertEqual(self.fake.listeners, [])

    def refuse(self, told: object) -> None:
        raise ValueError(told)


class Distribution(_EngineCase):
    def test_docker_asks_an_images_registry(self) -> None:
        image = self.fake.upstream[_NAME] = make_image(_NAME)
        self.assertEqual(self.do(self.engine.distribution(_NAME, "")).digest, image.root.digest)
        self.fails(self.engine.distribution("h.io/nope:1", ""), ManifestUnknown)

    def test_a_newer_engine_tells_where_it_got_an_image(self) -> None:
        self.use(FakeEngine(api="1.53"))
        self.fake.upstream[_NAME] = made = make_image(_NAME)
        self.fake.pull_now(_NAME)
        self.assertEqual(list(self.do(self.engine.pulled_from(_NAME))), ["docker.io/library/hello"])
        self.fake.add(make_image("docker.io/library/mine:1", labels={"is": "built"}))
        self.assertEqual(list(self.do(self.engine.pulled_from("docker.io/library/mine:1"))), [])
        self.fake.built.add(made.root.digest)
        self.assertEqual(list(self.do(self.engine.pulled_from(_NAME))), [])
        self.fails(self.engine.pulled_from("docker.io/library/other:1"), ImageNotInEngine)

    def test_an_older_engine_does_not_tell_it(self) -> None:
        self.fake.upstream[_NAME] = make_image(_NAME)
        self.fake.pull_now(_NAME)
        self.assertEqual(list(self.do(self.engine.pulled_from(_NAME))), [])

    def test_that_podman_cannot_is_no_word_about_the_image(self) -> None:
        self.use(FakeEngine(ImageStore.PODMAN, "1.44"))
        self.fake.upstream[_NAME] = make_image(_NAME)
        self.fails(self.engine.distribution(_NAME, ""), EngineError)


class Saves(_EngineCase):
    def test_the_archive_comes_whole_from_every_kind_of_engine(self) -> None:
        for store, api in (
            (ImageStore.CONTAINERD, "1.51"),
            (ImageStore.CLASSIC, "1.45"),
            (ImageStore.CLASSIC, "1.41"),
            (ImageStore.PODMAN, "1.41"),
        ):
            self.use(FakeEngine(store, api))
            image = self.fake.add(make_image(layers=[make_layer({"big": bytes(500_000)}, compress=False)]))
            archive = self.do(self.saved(image))
            self.assertEqual(archive, self.fake.archive(image))
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                self.assertIn("manifest.json", tar.getnames())

    def test_an_unknown_image_is_an_error_that_tells_no_path(self) -> None:
        for store in ImageStore:
            self.use(FakeEngine(store, "1.41"))
            error = self.fails(self.engine.save(Digest.of(b"nope")), ImageNotInEngine)
            self.assertNotIn("/var", str(error))

    def test_a_connection_that_is_lost_in_the_middle_is_an_error(self) -> None:
        image = self.fake.add(make_image())
        self.fake.save_fault = SaveFault("cut", 100)
        self.fails(self.saved(image), EngineUnavailable)
        self.do(self.engine.info())
        self.assertEqual(self.fake.infos, 2)

    def test_an_error_of_the_engine_is_inside_the_archive(self) -> None:
        image = self.fake.add(make_image())
        self.fake.save_fault = SaveFault("error", 1024)
        archive = self.do(self.saved(image))
        self.assertEqual(archive[:1024], self.fake.archive(image)[:1024])
        self.assertIn(b"errorDetail", archive[1024:])

    def test_an_export_that_stalls_is_given_up(self) -> None:
        image = self.fake.add(make_image())
        self.fake.save_fault = SaveFault("stall", 100)
        saving = self.start(self.saved(image))
        self.clock.advance(_SILENCE)
        self.failureResultOf(saving, EngineSilent)
        self.fake.flush()
        self.assertEqual(self.fake.abandoned, ["/v1.51/images/get"])

    def test_a_classic_store_may_take_its_time_to_begin(self) -> None:
        self.use(FakeEngine(ImageStore.CLASSIC))
        image = self.fake.add(make_image())
        self.fake.save_gate.shut()
        saving = self.start(self.saved(image))
        self.clock.advance(PREPARATION - 1)
        self.assertNoResult(saving)
        self.fake.save_gate.open()
        self.assertEqual(self.successResultOf(saving), self.fake.archive(image))

    def test_a_save_that_is_cancelled_before_it_began_lets_the_engine_stop(self) -> None:
        image = self.fake.add(make_image())
        self.fake.save_gate.shut()
        saving = self.start(self.saved(image))
        saving.cancel()
        self.failureResultOf(saving, CancelledError)
        self.fake.flush()
        self.assertEqual(self.fake.abandoned, ["/v1.51/images/get"])
