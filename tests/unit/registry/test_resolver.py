"""A reference becomes an image: the engine is asked every time, and pulls what it lacks once."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker.image import EngineImage, ImageStore
from k3dreg.formats.basic_auth import BasicAuth, registry_auth
from k3dreg.oci.errors import AuthenticationRequired, EngineError, EngineUnavailable, ManifestUnknown, UpstreamFailed
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.resolver import Resolver
from k3dreg.reporting.trace import Trace
from tests.fakes.engine import FakeEngine, PullError
from tests.fakes.images import make_image

HUB = "docker.io"
NOWHERE = f"sha256:{'0' * 64}"


def reference(path: str, target: str, registry: str | None = HUB) -> Reference:
    return Reference.parse(Repository.parse(path, registry), target)


async def no_credentials() -> str:
    return ""


class ResolvingTests(SynchronousTestCase):
    store = ImageStore.CONTAINERD

    def setUp(self) -> None:
        self.engine = FakeEngine(self.store)
        self.clock = Clock()
        self.resolver = Resolver(self.engine.client(self.clock), self.clock)
        self.trace = Trace()

    def ask(self, what: Reference, auth: str = "") -> Deferred[EngineImage]:
        async def credentials() -> str:
            return auth

        asked = Deferred.fromCoroutine(self.resolver.image(what, credentials, self.trace))
        self.engine.flush()
        return asked

    def test_what_docker_holds_is_not_pulled(self) -> None:
        held = self.engine.add(make_image("docker.io/library/nginx:1"))
        image = self.successResultOf(self.ask(reference("library/nginx", "1")))
        self.assertEqual(image.id, held.id(self.store))
        self.assertEqual(self.engine.pulls, [])

    def test_without_a_registry_the_local_name_is_meant(self) -> None:
        held = self.engine.add(make_image("docker.io/library/my-image:latest"))
        image = self.successResultOf(self.ask(reference("my-image", "latest", None)))
        self.assertEqual(image.id, held.id(self.store))

    def test_a_tag_that_was_moved_is_seen_at_the_next_question(self) -> None:
        self.engine.add(make_image("docker.io/library/app:1", labels={"build": "1"}))
        before = self.successResultOf(self.ask(reference("library/app", "1")))
        moved = self.engine.add(make_image("docker.io/library/app:1", labels={"build": "2"}))
        after = self.successResultOf(self.ask(reference("library/app", "1")))
        self.assertNotEqual(before.id, after.id)
        self.assertEqual(after.id, moved.id(self.store))

    def test_what_docker_lacks_it_pulls_once_however_many_ask(self) -> None:
        self.engine.upstream["docker.io/library/nginx:1"] = make_image("docker.io/library/nginx:1")
        self.engine.pull_gate.shut()
        asked = [self.ask(reference("library/nginx", "1")) for _ in range(20)]
        for each in asked:
            self.assertNoResult(each)
        self.engine.pull_gate.open()
        ids = {self.successResultOf(each).id for each in asked}
        self.assertEqual(len(ids), 1)
        self.assertEqual(len(self.engine.pulls), 1)
        self.assertIn("pull 0.0s", self.trace.steps)

    def test_callers_with_other_credentials_do_not_share_a_pull(self) -> None:
        self.engine.upstream["docker.io/library/nginx:1"] = make_image("docker.io/library/nginx:1")
        self.engine.pull_gate.shut()
        auth = registry_auth(BasicAuth("someone", "secret"), HUB)
        asked = [self.ask(reference("library/nginx", "1")), self.ask(reference("library/nginx", "1"), auth)]
        self.engine.pull_gate.open()
        for each in asked:
            self.successResultOf(each)
        self.assertEqual(self.engine.auths, [None, auth])

    def test_who_leaves_does_not_stop_the_pull(self) -> None:
        self.engine.upstream["docker.io/library/nginx:1"] = make_image("docker.io/library/nginx:1")
        self.engine.pull_gate.shut()
        leaving = self.ask(reference("library/nginx", "1"))
        leaving.cancel()
        self.failureResultOf(leaving, CancelledError)
        self.engine.pull_gate.open()
        self.assertEqual(self.engine.abandoned, [])
        self.successResultOf(self.ask(reference("library/nginx", "1")))
        self.assertEqual(len(self.engine.pulls), 1)

    def test_a_shutdown_ends_pulls(self) -> None:
        self.engine.upstream["docker.io/library/nginx:1"] = make_image("docker.io/library/nginx:1")
        self.engine.pull_gate.shut()
        asked = self.ask(reference("library/nginx", "1"))
        self.resolver.shutdown()
        self.engine.flush()
        self.failureResultOf(asked)
        self.assertEqual(len(self.engine.abandoned), 1)

    def test_what_nobody_has_is_unknown_and_asked_for_anew_some_seconds_later(self) -> None:
        for _ in range(3):
            self.failureResultOf(self.ask(reference("library/nginx", "1")), ManifestUnknown)
        self.assertEqual(len(self.engine.pulls), 1)
        self.clock.advance(6)
        self.failureResultOf(self.ask(reference("library/nginx", "1")), ManifestUnknown)
        self.assertEqual(len(self.engine.pulls), 2)

    def test_one_callers_refusal_is_not_anothers(self) -> None:
        self.engine.upstream["docker.io/some/private:1"] = PullError(500, "no basic auth credentials")
        self.failureResultOf(self.ask(reference("some/private", "1")), AuthenticationRequired)
        self.engine.upstream["docker.io/some/private:1"] = image = make_image("docker.io/some/private:1")
        auth = registry_auth(BasicAuth("someone", "secret"), HUB)
        self.successResultOf(self.ask(reference("some/private", str(image.root.digest)), auth))
        self.assertEqual(self.engine.auths, [None, auth])

    def test_a_refusal_keeps_dockers_words(self) -> None:
        words = "Head: no basic auth credentials"
        self.engine.upstream["docker.io/some/private:1"] = PullError(500, words)
        error = self.failureResultOf(self.ask(reference("some/private", "1")), AuthenticationRequired).value
        self.assertIn(words, str(error))

    def test_a_pull_that_failed_and_left_the_image_here_went_well(self) -> None:
        name = "docker.io/library/signature:1"
        words = "failed to unpack image on snapshotter overlayfs: mismatched image rootfs and manifest layers"
        self.engine.upstream[name] = PullError(200, words)
        self.engine.pull_gate.shut()
        asked = self.ask(reference("library/signature", "1"))
        held = self.engine.add(make_image(name))
        self.engine.pull_gate.open()
        self.assertEqual(self.successResultOf(asked).id, held.id(self.store))

    def test_an_engine_that_is_down_is_no_unknown_image(self) -> None:
        self.engine.down = True
        self.failureResultOf(self.ask(reference("library/nginx", "1")), EngineUnavailable)

    def test_digests_of_a_repository_that_just_failed_start_no_pulls(self) -> None:
        """A node that went to its next host asks here first for each digest that it learned there."""
        self.engine.upstream["docker.io/some/private:1"] = PullError(500, "no basic auth credentials")
        self.failureResultOf(self.ask(reference("some/private", "1")), AuthenticationRequired)
        for _ in range(3):
            self.failureResultOf(self.ask(reference("some/private", NOWHERE)), ManifestUnknown)
        self.assertEqual(len(self.engine.pulls), 1)
        self.clock.advance(61)
        self.failureResultOf(self.ask(reference("some/private", NOWHERE)), ManifestUnknown)
        self.assertEqual(len(self.engine.pulls), 2)

    def test_dockers_own_trouble_is_not_remembered(self) -> None:
        """It says nothing about what the registry has, and may be over with the next pull."""
        image = make_image("docker.io/some/app:1")
        digest = reference("some/app", str(image.root.digest))
        for name in ("docker.io/some/app:1", str(digest)):
            self.engine.upstream[name] = PullError(200, "write /layer.tar: no space left on device")
        self.failureResultOf(self.ask(reference("some/app", "1")), EngineError)
        error = self.failureResultOf(self.ask(digest), EngineError).value
        self.assertNotIsInstance(error, EngineUnavailable)
        self.engine.cut_pulls = True
        self.failureResultOf(self.ask(digest), EngineUnavailable)
        self.engine.cut_pulls, self.engine.upstream = False, {"docker.io/some/app:1": image}
        self.assertEqual(self.successResultOf(self.ask(digest)).id, image.root.digest)

    def test_a_registry_that_cannot_be_reached_is_left_alone_for_seconds_and_lacks_nothing(self) -> None:
        unreachable = PullError(500, "Get https://registry-1.docker.io/v2/: dial tcp: lookup failed: no such host")
        self.engine.upstream["docker.io/some/app:1"] = unreachable
        self.failureResultOf(self.ask(reference("some/app", "1")), UpstreamFailed)
        self.failureResultOf(self.ask(reference("some/app", NOWHERE)), UpstreamFailed)
        self.assertEqual(len(self.engine.pulls), 1)
        self.clock.advance(6)
        self.failureResultOf(self.ask(reference("some/app", NOWHERE)), ManifestUnknown)
        self.assertEqual(len(self.engine.pulls), 2)

    def test_a_pull_that_went_well_clears_the_repositorys_name(self) -> None:
        image = make_image("docker.io/library/nginx:2")
        self.failureResultOf(self.ask(reference("library/nginx", "1")), ManifestUnknown)
        self.engine.upstream["docker.io/library/nginx:2"] = image
        self.successResultOf(self.ask(reference("library/nginx", "2")))
        self.engine.remove(image)
        self.successResultOf(self.ask(reference("library/nginx", str(image.root.digest))))

    def test_by_digest_docker_pulls_too(self) -> None:
        image = make_image("docker.io/library/nginx:1")
        self.engine.upstream["docker.io/library/nginx:1"] = image
        found = self.successResultOf(self.ask(reference("library/nginx", str(image.root.digest))))
        self.assertEqual(found.id, image.root.digest)


class ClassicResolvingTests(SynchronousTestCase):
    def test_a_digest_is_not_pulled_since_docker_could_not_give_it_afterwards(self) -> None:
        engine, clock = FakeEngine(ImageStore.CLASSIC), Clock()
        resolver = Resolver(engine.client(clock), clock)
        asked = Deferred.fromCoroutine(resolver.image(reference("library/nginx", NOWHERE), no_credentials, Trace()))
        engine.flush()
        error = self.failureResultOf(asked, ManifestUnknown).value
        assert isinstance(error, ManifestUnknown)
        self.assertIn("containerd image store", error.advice)
        self.assertEqual(engine.pulls, [])


class PodmanResolvingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.engine = FakeEngine(ImageStore.PODMAN, "1.44", version="5.8.6")
        clock = Clock()
        self.resolver = Resolver(self.engine.client(clock), clock)

    def ask(self, what: Reference) -> Deferred[EngineImage]:
        asked = Deferred.fromCoroutine(self.resolver.image(what, no_credentials, Trace()))
        self.engine.flush()
        return asked

    def test_what_was_built_under_a_short_name_is_what_a_pod_means_by_it(self) -> None:
        built = self.engine.add(make_image("localhost/my-image:latest"))
        for path, registry in (("library/my-image", HUB), ("my-image", "localhost"), ("my-image", None)):
            found = self.successResultOf(self.ask(reference(path, "latest", registry)))
            self.assertEqual(found.id, built.id(ImageStore.PODMAN))
        self.assertEqual(self.engine.pulls, [])

    def test_it_comes_before_docker_hubs_as_for_podman_itself(self) -> None:
        self.engine.add(make_image("docker.io/team/app:1", labels={"from": "the hub"}))
        built = self.engine.add(make_image("localhost/team/app:1", labels={"from": "here"}))
        found = self.successResultOf(self.ask(reference("team/app", "1")))
        self.assertEqual(found.id, built.id(ImageStore.PODMAN))

    def test_what_podman_lacks_it_pulls_from_the_registry_that_was_asked_for(self) -> None:
        self.engine.upstream["docker.io/library/nginx:1"] = image = make_image("docker.io/library/nginx:1")
        found = self.successResultOf(self.ask(reference("library/nginx", "1")))
        self.assertEqual(found.id, image.id(ImageStore.PODMAN))
        self.assertEqual(self.engine.pulls, ["docker.io/library/nginx:1"])

    def test_a_digest_is_not_pulled_and_the_advice_is_not_dockers(self) -> None:
        error = self.failureResultOf(self.ask(reference("library/nginx", NOWHERE)), ManifestUnknown).value
        assert isinstance(error, ManifestUnknown)
        self.assertIn("--origin-fallback", error.advice)
        self.assertNotIn("daemon.json", error.advice)
        self.assertEqual(self.engine.pulls, [])
