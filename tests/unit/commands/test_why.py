"""`k3dreg why`: what a node would be answered, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.commands.why import Step, parse_image, pushed_in, walk
from k3dreg.docker.image import ImageStore
from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import K3dregError, RegistryNotAllowed
from k3dreg.oci.reference import Reference, Repository, Tag
from k3dreg.registry.own_names import OwnNames
from k3dreg.store.interfaces import PushedManifest
from k3dreg.store.pushed import DATABASE_FILE, open_pushed
from tests.fakes.engine import FakeEngine, PullError
from tests.fakes.images import lose, make_image
from tests.fakes.workers import InlineWorkers

NGINX = "docker.io/library/nginx:1"


class SomeCredentials:
    """Has some for one registry."""

    async def credentials(self, registry: str) -> Credentials | None:
        return None

    async def registry_auth(self, registry: str) -> str:
        return "c2VjcmV0" if registry == "private.example" else ""

    def refused(self, registry: str) -> None:
        pass


class WhyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.fake = FakeEngine(ImageStore.CONTAINERD)
        self.state = Path(self.mktemp())
        self.state.mkdir(parents=True)

    async def may_ask(self, registry: str) -> None:
        if registry.startswith("localhost"):
            raise RegistryNotAllowed(f"k3dreg may not ask {registry} for images", advice="--allow-registry it")

    def test_a_registry_that_may_not_be_asked_is_not(self) -> None:
        steps = self.why("localhost:5001/app:1")
        self.assertIn(
            "k3dreg may not ask localhost:5001 for images: --allow-registry it", [step.says for step in steps]
        )
        self.assertEqual(steps[-1].says, "the answer is 403, and the node asks localhost:5001 itself")
        self.assertIs(steps[-1].answer, False)

    def why(self, image: str, *, fallback: bool = False, only: str | None = None) -> Sequence[Step]:
        engine = self.fake.client(Clock())
        steps: list[Step] = []

        async def collect() -> None:
            walked = walk(
                parse_image(image),
                engine,
                OwnNames(["localhost:5005"]),
                SomeCredentials(),
                pushed=pushed_in(self.state / DATABASE_FILE),
                origin_fallback=fallback,
                only=only,
                may_ask=self.may_ask,
            )
            steps.extend([step async for step in walked])

        done = Deferred.fromCoroutine(collect())
        self.fake.flush()
        self.successResultOf(done)
        self.assertEqual([step.answer for step in steps[:-1]], [None] * (len(steps) - 1))
        self.assertIsNotNone(steps[-1].answer)
        self.assertEqual(self.fake.pulls, [], "nothing is pulled")
        return steps

    def outcome(self, image: str, *, fallback: bool = False, only: str | None = None) -> tuple[bool | None, str]:
        """The answer, and all that is said."""
        steps = self.why(image, fallback=fallback, only=only)
        return steps[-1].answer, "\n".join(step.says for step in steps)

    def test_what_docker_has_is_given(self) -> None:
        image = self.fake.add(make_image(NGINX))
        answer, said = self.outcome("nginx:1")
        self.assertTrue(answer)
        self.assertIn("HEAD /v2/library/nginx/manifests/1?ns=docker.io", said)
        self.assertIn(f"by Docker's own digest, {image.root.digest}", said)

    def test_the_classic_store_gives_it_too_and_no_digest(self) -> None:
        self.fake.store = ImageStore.CLASSIC
        image = self.fake.add(make_image(NGINX))
        self.assertTrue(self.outcome("nginx:1")[0])
        by_digest = f"nginx@{image.root.digest}"
        answer, said = self.outcome(by_digest)
        self.assertFalse(answer)
        self.assertIn("404", said)
        self.assertIn("containerd-snapshotter", said)

    def test_a_digest_may_come_from_behind(self) -> None:
        self.fake.store = ImageStore.CLASSIC
        image = make_image(NGINX)
        self.fake.upstream[f"docker.io/library/nginx@{image.root.digest}"] = image
        answer, said = self.outcome(f"nginx@{image.root.digest}", fallback=True)
        self.assertTrue(answer, said)
        self.assertIn("--origin-fallback", said)

    def test_what_only_the_registry_has_is_pulled(self) -> None:
        image = make_image(NGINX)
        self.fake.upstream[NGINX] = image
        answer, said = self.outcome("nginx:1")
        self.assertTrue(answer)
        self.assertIn(f"the engine has no {NGINX}", said)
        self.assertIn(f"docker.io has it: {image.root.digest}", said)

    def test_another_registrys_image_is_a_404_where_one_registrys_are_given(self) -> None:
        self.fake.add(make_image("ghcr.io/team/app:1"))
        answer, said = self.outcome("ghcr.io/team/app:1", only="docker.io")
        self.assertFalse(answer)
        self.assertIn("docker.io only", said)
        self.fake.add(make_image(NGINX))
        self.assertTrue(self.outcome("nginx:1", only="docker.io")[0])
        # A registry in the path of an own name is another one all the same, as a pull finds.
        answer, said = self.outcome("localhost:5005/ghcr.io/team/app:1", only="docker.io")
        self.assertIs(answer, False)
        self.assertIn("404: k3dreg serves images of docker.io only, and ghcr.io/team/app is another registry's", said)

    def test_what_is_nowhere_is_a_404(self) -> None:
        answer, said = self.outcome("nginy:1")
        self.assertFalse(answer)
        self.assertIn("the answer is 404, and the node asks docker.io itself", said)

    def test_a_private_image_says_whether_there_are_credentials(self) -> None:
        for registry, has in (("private.example", "k3dreg has credentials"), ("other.example", "k3dreg has no")):
            self.fake.upstream[f"{registry}/app:1"] = PullError(
                500, f"pull access denied for {registry}/app, repository does not exist or may require 'docker login'"
            )
            answer, said = self.outcome(f"{registry}/app:1")
            self.assertFalse(answer)
            self.assertIn(has, said)
            self.assertIn("the answer is 401", said)
            self.assertIn("docker login", said)
            self.assertNotIn("c2VjcmV0", said)

    def test_lost_blobs_are_told_of(self) -> None:
        image = make_image(NGINX)
        self.fake.add(lose(image, image.variants[0].layers[0].descriptor.digest))
        answer, said = self.outcome("nginx:1")
        self.assertFalse(answer)
        self.assertIn("moby#49473", said)
        self.fake.upstream[NGINX] = image
        answer, said = self.outcome("nginx:1")
        self.assertTrue(answer)
        self.assertIn("repairs it", said)

    def test_an_engine_that_is_away_is_a_503(self) -> None:
        self.fake.down = True
        answer, said = self.outcome("nginx:1")
        self.assertFalse(answer)
        self.assertIn("start Docker; the answer is 503", said)

    def test_what_was_pushed_comes_first_and_needs_no_engine(self) -> None:
        descriptor = Descriptor(media_types.OCI_MANIFEST, Digest.of(b"pushed"), 7)
        pushed = self.successResultOf(Deferred.fromCoroutine(open_pushed(self.state, InlineWorkers(), Clock())))
        added = pushed.add_manifest(Repository(None, "app"), PushedManifest(descriptor), [Tag("1")])
        self.successResultOf(Deferred.fromCoroutine(added))
        self.successResultOf(Deferred.fromCoroutine(pushed.close()))
        self.fake.down = True
        for name in ("localhost:5005/app:1", f"localhost:5005/app@{descriptor.digest}"):
            answer, said = self.outcome(name)
            self.assertTrue(answer)
            self.assertIn(f"a node gets {descriptor.digest}", said)
        self.assertFalse(self.outcome("localhost:5005/app:2")[0])

    def test_under_our_own_names_nothing_is_pulled(self) -> None:
        answer, said = self.outcome("localhost:5005/app:1")
        self.assertFalse(answer)
        self.assertIn("Docker pulls nothing under this registry's own names", said)
        self.assertEqual(self.fake.distributions, [])
        self.fake.add(make_image("docker.io/library/app:1"))
        self.assertTrue(self.outcome("localhost:5005/app:1")[0])

    def test_podman_cannot_be_asked_before(self) -> None:
        self.fake.store = ImageStore.PODMAN
        answer, said = self.outcome("nginx:1")
        self.assertTrue(answer)
        self.assertIn("without a pull", said)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("nginx", Reference(Repository("docker.io", "library/nginx"), Tag("latest"))),
        ("me/app:2", Reference(Repository("docker.io", "me/app"), Tag("2"))),
        ("localhost:5005/app", Reference(Repository("localhost:5005", "app"), Tag("latest"))),
        ("ghcr.io/a/b:c", Reference(Repository("ghcr.io", "a/b"), Tag("c"))),
        (f"ghcr.io/a/b:c@{Digest.of(b'')}", Reference(Repository("ghcr.io", "a/b"), Digest.of(b""))),
    ],
)
def test_an_images_name_is_read_as_a_node_reads_it(text: str, reference: Reference) -> None:
    assert parse_image(text) == reference


@pytest.mark.parametrize("text", ["", "UPPER", "a:b:c", "a@sha256:12", "a b", "../x", "x:\n"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(K3dregError):
        parse_image(text)
