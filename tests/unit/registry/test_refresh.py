"""`--refresh`: tags that have moved in their registries, and images that are not those registries' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.config.refresh_rule import RefreshRule
from k3dreg.docker.image import EngineImage, ImageStore
from k3dreg.formats.basic_auth import BasicAuth, Credentials
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    AuthenticationRequired,
    K3dregError,
    ManifestUnknown,
    RateLimited,
    RedirectRefused,
    RegistryNotAllowed,
    UpstreamFailed,
)
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.pull_credentials import PullCredentials
from k3dreg.registry.refresh import AGAIN_AFTER, AGAIN_AFTER_RATE_LIMIT, WAIT, Refresh
from k3dreg.registry.resolver import Resolver
from k3dreg.registry.tag_questions import TagQuestions
from k3dreg.registry.tag_records import TagRecord, TagRecords
from k3dreg.reporting.trace import Trace
from tests.fakes.databases import open_database
from tests.fakes.engine import FakeEngine, PullError
from tests.fakes.images import FakeImage, make_image
from tests.fakes.workers import InlineWorkers

NGINX = "docker.io/library/nginx:1"
HOUR = 3600.0


def named(name: str) -> Reference:
    host, _, rest = name.partition("/")
    path, _, target = rest.partition("@" if "@" in rest else ":")
    return Reference.parse(Repository.parse(path, host), target)


class Registries:
    """The registries of a `FakeEngine`'s `upstream`, as k3dreg asks them itself."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.asked: list[tuple[str, str]] = []
        self.error: K3dregError | None = None
        self.silent: Deferred[None] | None = None

    async def digest(self, reference: Reference, credentials: Credentials | None) -> Digest:
        self.asked.append((str(reference), credentials.username if credentials else ""))
        if self.silent is not None:
            await self.silent
        if self.error is not None:
            raise self.error
        found = self._engine.published(str(reference))
        if isinstance(found, PullError):
            raise ManifestUnknown(found.message)
        return found.root.digest


class RefreshCase(SynchronousTestCase):
    store = ImageStore.CONTAINERD
    api = "1.51"

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.engine = FakeEngine(self.store, self.api)
        self.registries = Registries(self.engine)
        self.state = Path(self.mktemp())
        self.allowed = True
        self.said: list[str] = []
        self.start()

    def start(self) -> None:
        database = open_database(self.state)
        self.addCleanup(database.close)
        client = self.engine.client(self.clock)
        self.records = TagRecords(database, InlineWorkers(self.clock))
        names, credentials = OwnNames(["own.example:5000"]), PullCredentials()
        self.resolver = Resolver(client, self.clock, names, pulled=self.records.pulled)
        questions = TagQuestions(self.records, self.registries, client, credentials, names, self.clock, self.may_ask)
        self.refresh = Refresh(questions, self.resolver, credentials, self.clock, self.said.append)
        self.refresh.change([RefreshRule("nginx", HOUR)])

    async def may_ask(self, registry: str) -> None:
        if not self.allowed:
            raise RegistryNotAllowed(f"k3dreg may not ask {registry} for images")

    def publish(self, label: str, name: str = NGINX) -> FakeImage:
        """The registry has another image for the tag from now on."""
        image = self.engine.upstream[name] = make_image(name, labels={"is": label})
        return image

    def begin(self, name: str = NGINX, shown: BasicAuth | None = None) -> Deferred[EngineImage]:
        """What a client's request does."""
        self.trace = Trace()

        async def request() -> EngineImage:
            async def auth() -> str:
                return ""

            image = await self.resolver.image(named(name), auth, self.trace)
            return await self.refresh.current(image, named(name), shown, self.trace)

        work = Deferred.fromCoroutine(request())
        self.engine.flush()
        return work

    def check(self, expected: FakeImage, name: str = NGINX, shown: BasicAuth | None = None) -> None:
        """The client gets this image."""
        image = self.successResultOf(self.begin(name, shown))
        self.assertEqual(image.id, expected.id(self.store))

    def pulled(self, name: str = NGINX) -> FakeImage:
        """Docker has pulled an image because k3dreg asked it to, and the answer of then is too old."""
        image = self.publish("old", name)
        self.check(image, name)
        self.clock.advance(HOUR)
        self.engine.pulls.clear()
        self.registries.asked.clear()
        return image


class MovedTagTests(RefreshCase):
    def test_a_tag_that_has_moved_is_pulled_again(self) -> None:
        self.pulled()
        new = self.publish("new")
        self.check(new)
        self.assertEqual(self.engine.pulls, [NGINX])
        self.assertEqual(self.registries.asked, [(NGINX, "")])
        self.assertEqual(self.trace.steps, ["registry asked 0.0s", "pull 0.0s"])

    def test_a_tag_that_has_not_moved_is_not(self) -> None:
        held = self.pulled()
        self.check(held)
        self.assertEqual((self.engine.pulls, len(self.registries.asked)), ([], 1))

    def test_the_registry_is_asked_once_in_the_time_of_the_rule(self) -> None:
        held = self.pulled()
        self.check(held)
        self.publish("new")
        for _ in range(3):
            self.check(held)
        self.clock.advance(HOUR - 1)
        self.check(held)
        self.assertEqual(len(self.registries.asked), 1)
        self.clock.advance(1)
        self.check(self.publish("newer"))
        self.assertEqual(len(self.registries.asked), 2)

    def test_a_pull_is_an_answer_too(self) -> None:
        held = self.publish("old")
        self.check(held)
        self.publish("new")
        self.check(held)
        self.assertEqual(self.registries.asked, [])

    def test_requests_at_the_same_time_share_the_question_and_the_pull(self) -> None:
        self.pulled()
        new = self.publish("new")
        self.registries.silent = Deferred()
        waiting = [self.begin() for _ in range(5)]
        self.engine.pull_gate.shut()
        self.registries.silent.callback(None)
        self.engine.flush()
        waiting.append(self.begin())
        self.engine.pull_gate.open()
        for each in waiting:
            self.assertEqual(self.successResultOf(each).id, new.id(self.store))
        self.assertEqual((len(self.registries.asked), len(self.engine.pulls)), (1, 1))

    def test_what_is_known_survives_a_restart(self) -> None:
        held = self.pulled()
        self.check(held)
        self.start()
        self.check(held)
        self.assertEqual(len(self.registries.asked), 1)
        self.clock.advance(HOUR)
        self.check(self.publish("new"))

    def test_a_clock_that_is_set_back_does_not_put_the_question_off(self) -> None:
        self.pulled()
        self.clock.rightNow -= 10 * HOUR
        self.check(self.publish("new"))

    def test_only_names_that_fit_are_asked_about(self) -> None:
        held = self.pulled("docker.io/library/redis:1")
        self.publish("new", "docker.io/library/redis:1")
        self.check(held, "docker.io/library/redis:1")
        self.assertEqual(self.registries.asked, [])

    def test_the_first_rule_that_fits_counts(self) -> None:
        self.refresh.change([RefreshRule("docker.io/library/nginx:*", 60), RefreshRule("*", HOUR)])
        self.check(self.publish("old"))
        self.clock.advance(60)
        self.check(self.publish("new"))

    def test_a_tag_that_moved_once_more_during_the_pull_is_pulled_once(self) -> None:
        self.pulled()
        self.publish("new")
        self.engine.pull_gate.shut()
        waiting = self.begin()
        newest = self.publish("newest")
        self.engine.pull_gate.open()
        self.assertEqual(self.successResultOf(waiting).id, newest.id(self.store))
        self.check(newest)
        self.assertEqual(len(self.engine.pulls), 1)

    def test_a_client_that_leaves_does_not_end_the_pull(self) -> None:
        self.pulled()
        new = self.publish("new")
        self.engine.pull_gate.shut()
        leaving = self.begin()
        leaving.addErrback(lambda _: None)
        leaving.cancel()
        self.assertTrue(self.resolver.is_pulling(named(NGINX)), "so that the next request finds it under way")
        self.engine.pull_gate.open()
        self.check(new)
        self.assertEqual(len(self.engine.pulls), 1)

    def test_credentials_of_the_client_go_with_the_question_and_the_pull(self) -> None:
        self.pulled()
        self.check(self.publish("new"), shown=BasicAuth("pod", "secret"))
        self.assertEqual(self.registries.asked, [(NGINX, "pod")])
        self.assertNotIn(self.engine.auths[-1], (None, ""))

    def test_a_digest_is_never_asked_about(self) -> None:
        held = self.pulled()
        name = f"docker.io/library/nginx@{held.root.digest}"
        if self.store is ImageStore.CONTAINERD:
            self.check(held, name)
        self.assertEqual(self.registries.asked, [])

    def test_under_k3dregs_own_names_no_registry_is_asked(self) -> None:
        self.refresh.change([RefreshRule("*", 1)])
        name = "own.example:5000/app:1"
        held = self.engine.add(make_image(name))
        record = TagRecord(held.id(self.store), None, 0)
        self.successResultOf(Deferred.fromCoroutine(self.records.put(named(name), record)))
        self.check(held, name)
        self.assertEqual(self.registries.asked, [])


class ClassicMovedTagTests(MovedTagTests):
    """The classic store tells the digest in `RepoDigests`, and an image may have several."""

    store = ImageStore.CLASSIC

    def test_another_index_of_the_same_image_is_not_pulled_for_ever(self) -> None:
        first = self.pulled()
        self.engine.upstream[NGINX] = make_image(NGINX, labels={"is": "old"}, indexed=True)
        self.check(first)
        self.assertEqual(len(self.engine.pulls), 1)
        self.clock.advance(HOUR)
        self.check(first)
        self.assertEqual(len(self.engine.pulls), 1)


class PodmanMovedTagTests(MovedTagTests):
    store = ImageStore.PODMAN
    api = "1.44"


class FailureTests(RefreshCase):
    """Whatever fails, the client gets what Docker has."""

    def failing(self, error: K3dregError, pause: float) -> None:
        """The registry refuses, is left alone for `pause` seconds, and is asked again then."""
        held = self.pulled()
        new = self.publish("new")
        self.registries.error = error
        self.engine.upstream[NGINX] = PullError(500, "dial tcp: no route to host")
        self.check(held)
        self.assertIn(f"{error}", self.said[-1])
        self.assertIn("1 h ago", self.said[-1])
        self.check(held)
        self.clock.advance(pause - 1)
        self.check(held)
        self.assertEqual(len(self.registries.asked), 1)
        self.registries.error, self.engine.upstream[NGINX] = None, new
        self.clock.advance(1)
        self.check(new)

    def test_no_credentials(self) -> None:
        self.failing(AuthenticationRequired("registry-1.docker.io answered 401"), AGAIN_AFTER)

    def test_a_rate_limit(self) -> None:
        self.failing(RateLimited("registry-1.docker.io answered 429"), AGAIN_AFTER_RATE_LIMIT)

    def test_a_tag_that_is_gone(self) -> None:
        self.failing(ManifestUnknown("registry-1.docker.io answered 404"), AGAIN_AFTER)

    def test_a_redirect_to_this_machine(self) -> None:
        self.failing(RedirectRefused("registry-1.docker.io redirects to an address of this machine"), AGAIN_AFTER)
        self.assertEqual(self.engine.distributions, [])

    def test_a_registry_that_neither_k3dreg_nor_docker_reaches(self) -> None:
        held = self.pulled()
        self.registries.error = UpstreamFailed("docker.io cannot be reached: it refuses connections")
        self.engine.upstream[NGINX] = PullError(500, "dial tcp: no route to host")
        self.check(held)
        self.assertIn("no route to host", self.said[-1])
        self.assertEqual(self.engine.distributions, [NGINX])
        self.check(held)
        self.assertEqual(len(self.registries.asked), 1)

    def test_a_registry_that_docker_alone_reaches_is_asked_by_docker(self) -> None:
        self.pulled()
        self.registries.error = UpstreamFailed("docker.io cannot be reached: its certificate is not trusted")
        self.check(self.publish("new"))
        self.assertEqual(self.engine.distributions, [NGINX])

    def test_a_silent_registry_concerns_all_its_tags(self) -> None:
        self.refresh.change([RefreshRule("*", HOUR)])
        other = "docker.io/library/redis:1"
        for name in (NGINX, other):
            self.check(self.publish("old", name), name)
        self.clock.advance(HOUR)
        self.registries.error = RateLimited("registry-1.docker.io answered 429")
        for name in (NGINX, other):
            self.successResultOf(self.begin(name))
        self.assertEqual(len(self.registries.asked), 1)

    def test_one_clients_credentials_do_not_stop_anothers(self) -> None:
        held = self.pulled()
        new = self.publish("new")
        self.registries.error = AuthenticationRequired("registry-1.docker.io answered 401")
        self.check(held)
        self.registries.error = None
        self.check(new, shown=BasicAuth("pod", "secret"))

    def test_a_registry_that_may_not_be_asked_is_not(self) -> None:
        held = self.pulled()
        self.publish("new")
        self.allowed = False
        self.check(held)
        self.assertEqual(self.registries.asked, [])

    def test_a_registry_that_is_slow_does_not_hold_up_a_pod_and_its_answer_counts_later(self) -> None:
        held = self.pulled()
        new = self.publish("new")
        self.registries.silent = Deferred()
        waiting = self.begin()
        self.clock.advance(WAIT - 0.1)
        self.assertNoResult(waiting)
        self.clock.advance(0.1)
        self.assertEqual(self.successResultOf(waiting).id, held.id(self.store))
        self.registries.silent.callback(None)
        self.check(new)
        self.assertEqual(len(self.registries.asked), 1)

    def test_a_pull_that_fails_does_not_keep_a_pod_from_starting(self) -> None:
        held = self.pulled()
        new = self.publish("new")
        self.registries.silent = Deferred()
        waiting = self.begin()
        self.engine.upstream[NGINX] = PullError(200, "write /layer.tar: no space left on device")
        digest = new.root.digest

        async def told(reference: Reference, credentials: Credentials | None) -> Digest:
            return digest

        self.registries.silent.callback(None)
        self.successResultOf(waiting)
        self.clock.advance(AGAIN_AFTER)
        self.patch(self.registries, "digest", told)
        self.check(held)
        self.assertIn("no space left on device", self.said[-1])
        pulls = len(self.engine.pulls)
        self.check(held)
        self.assertEqual(len(self.engine.pulls), pulls, "not tried for every request")
        self.engine.upstream[NGINX] = new
        self.clock.advance(AGAIN_AFTER)
        self.check(new)

    def test_a_database_that_cannot_be_written_costs_no_questions(self) -> None:
        held = self.pulled()
        database: Any = self.records._database
        database.close()
        for _ in range(3):
            self.check(held)
        self.assertLessEqual(len(self.registries.asked), 1)


class OriginTests(RefreshCase):
    """Only an image that is known to be its registry's is replaced."""

    api = "1.53"

    def not_replaced(self, held: FakeImage) -> None:
        self.publish("new")
        self.check(held)
        self.assertEqual((self.engine.pulls, self.registries.asked), ([], []))
        self.assertIn("built, tagged or loaded here", self.said[-1])

    def test_an_image_that_was_built_here_is_not(self) -> None:
        self.not_replaced(self.engine.add(make_image(NGINX)))

    def test_an_image_that_was_tagged_here_is_not(self) -> None:
        self.engine.upstream["ghcr.io/team/app:1"] = made = make_image("ghcr.io/team/app:1")
        self.engine.pull_now("ghcr.io/team/app:1")
        self.engine.tag("ghcr.io/team/app:1", NGINX)
        self.not_replaced(made)

    def test_an_image_that_was_built_in_place_of_a_pulled_one_is_not(self) -> None:
        self.pulled()
        self.not_replaced(self.engine.add(make_image(NGINX, labels={"is": "mine"})))

    def test_an_image_that_was_built_after_the_registrys_answer_is_not(self) -> None:
        self.pulled()
        self.publish("new")
        self.registries.silent = Deferred()
        waiting = self.begin()
        self.clock.advance(WAIT)
        self.successResultOf(waiting)
        self.registries.silent.callback(None)  # it has moved, and no request waits for that any more
        self.engine.pulls.clear()
        built = self.engine.add(make_image(NGINX, labels={"is": "mine"}))
        self.check(built)
        self.assertEqual(self.engine.pulls, [])

    def test_an_image_that_was_built_during_a_pull_that_fails_is_not(self) -> None:
        engine, built = self.engine, make_image(NGINX, labels={"is": "mine"})

        class Building(dict[str, Any]):
            def items(self) -> Any:
                engine.add(built)
                return {NGINX: PullError(200, "unexpected EOF")}.items()

        engine.upstream = Building()
        self.check(built)
        engine.upstream = {}
        engine.pulls.clear()
        self.clock.advance(HOUR)
        self.not_replaced(built)

    def test_an_image_that_was_built_while_the_registry_was_asked_is_not(self) -> None:
        self.pulled()
        self.publish("new")
        self.registries.silent = Deferred()
        waiting = self.begin()
        built = self.engine.add(make_image(NGINX, labels={"is": "mine"}))
        self.registries.silent.callback(None)
        self.engine.flush()
        self.assertEqual(self.successResultOf(waiting).id, built.id(self.store))
        self.assertEqual(self.engine.pulls, [])

    def test_the_pulled_one_is_known_again_when_it_gets_its_tag_back(self) -> None:
        held = self.pulled()
        self.engine.tag(NGINX, "docker.io/library/kept:1")
        self.not_replaced(self.engine.add(make_image(NGINX, labels={"is": "mine"})))
        self.engine.tag("docker.io/library/kept:1", NGINX)
        self.clock.advance(HOUR)
        self.assertNotEqual(held.root, self.publish("new").root)
        self.check(self.publish("new"))

    def test_an_image_that_docker_pulled_by_itself_is(self) -> None:
        self.publish("old")
        self.engine.pull_now(NGINX)
        self.check(self.publish("new"))

    def test_the_port_that_docker_leaves_out_is_left_out(self) -> None:
        self.refresh.change([RefreshRule("*", HOUR)])
        name = "registry.example:5000/app:1"
        self.publish("old", name)
        self.engine.pull_now(name)
        self.check(self.publish("new", name), name)

    def test_an_image_that_was_built_here_and_pushed_there_is_not(self) -> None:
        held = self.publish("old")
        self.engine.pull_now(NGINX)  # which marks it as a push does
        self.engine.built.add(held.root.digest)
        self.not_replaced(held)

    def test_an_engine_that_does_not_tell_is_not_believed(self) -> None:
        self.engine.api = "1.51"
        held = self.publish("old")
        self.engine.pull_now(NGINX)
        self.not_replaced(held)


class ClassicOriginTests(RefreshCase):
    store = ImageStore.CLASSIC

    def test_what_docker_pulled_by_itself_is_not_known(self) -> None:
        held = self.publish("old")
        self.engine.pull_now(NGINX)
        self.publish("new")
        self.check(held)
        self.assertEqual(self.registries.asked, [])


class RecordsTests(RefreshCase):
    def test_the_oldest_are_dropped(self) -> None:
        database: Any = self.records._database
        records = TagRecords(database, InlineWorkers(self.clock), 3)
        image = self.successResultOf(self.begin(self.publish("old").name))
        names = [named(f"docker.io/library/app:{number}") for number in range(5)]
        for reference in names:
            self.clock.advance(1)
            self.successResultOf(Deferred.fromCoroutine(records.pulled(reference, image)))
        self.assertEqual([records.find(each) is not None for each in names], [False, False, True, True, True])
