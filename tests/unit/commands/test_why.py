"""`k3dreg why`: what a node would be answered, step by step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.commands.why import explain, parse_image
from k3dreg.config.engine_address import EngineAddress
from k3dreg.config.refresh_rule import RefreshRule
from k3dreg.config.settings import Config
from k3dreg.docker.image import ImageStore
from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import K3dregError
from k3dreg.oci.reference import Reference, Repository, Tag
from k3dreg.registry.own_name_discovery import EngineImageNames
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.permitted import PermittedRegistries
from k3dreg.registry.tag_records import TagRecord, TagRecords
from k3dreg.store.blob_files import blob_path
from k3dreg.store.interfaces import PushedManifest
from k3dreg.store.pushed import PushedContent
from tests.fakes.databases import open_database
from tests.fakes.engine import FakeEngine, PullError
from tests.fakes.images import FakeImage, lose, make_image
from tests.fakes.workers import InlineWorkers
from tests.unit.registry import test_pull_table as table

NGINX = "docker.io/library/nginx:1"


class SomeCredentials:
    """Has some for one registry."""

    async def credentials(self, registry: str) -> Credentials | None:
        return None

    async def registry_auth(self, registry: str) -> str:
        return "c2VjcmV0" if registry == "private.example" else ""

    def refused(self, registry: str) -> None:
        pass


class WhyCase(SynchronousTestCase):
    own = "localhost:5005"

    def setUp(self) -> None:
        self.fake = FakeEngine(ImageStore.CONTAINERD)
        self.state = Path(self.mktemp())
        self.state.mkdir(parents=True)

    refresh: tuple[RefreshRule, ...] = ()

    async def digest(self, reference: Reference, credentials: Credentials | None) -> Digest:
        """The registries, as k3dreg asks them itself."""
        return (await self.fake.client(Clock()).distribution(str(reference), "")).digest

    def outcome(self, image: str, *, fallback: bool = False, only: str = "") -> tuple[bool, str]:
        """Whether a node gets the image, and all that is said."""
        workers = InlineWorkers(Clock())
        engine = self.fake.client(Clock())
        config = Config(
            docker=EngineAddress(path="/engine"),
            state_dir=self.state,
            origin_fallback=fallback,
            proxy_remote=only or None,
            refresh=self.refresh,
        )
        permitted = PermittedRegistries((), engine, EngineImageNames(engine, workers), remote=config.remote.only)
        said: list[str] = []
        done = Deferred.fromCoroutine(
            explain(
                *(parse_image(image), config, engine, OwnNames([self.own]), SomeCredentials()),
                *(self, permitted, workers, Clock(), said.append),
            )
        )
        self.fake.flush()
        answer = self.successResultOf(done)
        self.assertEqual(self.fake.pulls, [], "nothing is pulled")
        self.assertEqual(len(said), len(set(said)), said)
        return answer, "\n".join(said)

    def push(self, repository: Repository) -> Digest:
        """Push a manifest, tagged `1`, into the state directory."""
        descriptor = Descriptor(media_types.OCI_MANIFEST, Digest.of(b"pushed"), 6)
        database = open_database(self.state)
        pushed = PushedContent(database, InlineWorkers(), Clock())
        added = pushed.add_manifest(repository, PushedManifest(descriptor), [Tag("1")])
        self.successResultOf(Deferred.fromCoroutine(added))
        self.successResultOf(Deferred.fromCoroutine(pushed.close()))
        database.close()
        file = blob_path(self.state / "blobs", descriptor.digest)
        file.parent.mkdir(parents=True)
        file.write_bytes(b"pushed")
        return descriptor.digest


class WhyTests(WhyCase):
    def test_a_registry_that_may_not_be_asked_is_not(self) -> None:
        answer, said = self.outcome("localhost:5001/app:1")
        self.assertIs(answer, False)
        self.assertIn("k3dreg may not ask localhost:5001 for images. if it is a registry of yours: --allow-reg", said)
        self.assertTrue(said.endswith("\nthe answer is 403, and the node asks localhost:5001 itself"), said)

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
        self.assertIn("k3dreg serves images of docker.io only, and ghcr.io/team/app is another registry's", said)
        self.assertTrue(said.endswith("\nthe answer is 404"), said)

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
        self.fake.upstream[f"docker.io/library/nginx@{image.root.digest}"] = image
        answer, said = self.outcome("nginx:1")
        self.assertTrue(answer)
        self.assertIn("repairs it", said)

    def test_an_engine_that_is_away_is_a_503(self) -> None:
        self.fake.down = True
        answer, said = self.outcome("nginx:1")
        self.assertFalse(answer)
        self.assertIn("start Docker\nthe answer is 503", said)

    def test_what_was_pushed_comes_first_and_needs_no_engine(self) -> None:
        digest = self.push(Repository(None, "app"))
        self.fake.down = True
        for name in ("localhost:5005/app:1", f"localhost:5005/app@{digest}"):
            answer, said = self.outcome(name)
            self.assertTrue(answer)
            self.assertIn(f"it was pushed here: a node gets {digest}", said)
        self.assertFalse(self.outcome("localhost:5005/app:2")[0])

    def test_what_was_pushed_and_is_not_on_the_disk_any_more_is_a_404(self) -> None:
        self.push(Repository(None, "app"))
        shutil.rmtree(self.state / "blobs")
        answer, said = self.outcome("localhost:5005/app:1")
        self.assertFalse(answer)
        self.assertIn("the answer is 404", said)

    def test_under_our_own_names_nothing_is_pulled(self) -> None:
        answer, said = self.outcome("localhost:5005/app:1")
        self.assertFalse(answer)
        self.assertIn("Docker has no app:1, and it was not pushed here", said)
        self.assertEqual(self.fake.distributions, [])
        self.fake.add(make_image("docker.io/library/app:1"))
        self.assertTrue(self.outcome("localhost:5005/app:1")[0])

    def test_the_other_registry_that_a_path_may_mean_is_told(self) -> None:
        image = self.fake.upstream["ghcr.io/team/app:1"] = make_image("ghcr.io/team/app:1")
        answer, said = self.outcome("localhost:5005/ghcr.io/team/app:1")
        self.assertTrue(answer)
        self.assertIn("the engine has no localhost:5005/ghcr.io/team/app:1\nthe engine has no ghcr.io/team/app", said)
        self.assertIn(f"ghcr.io has it: {image.root.digest}", said)

    def test_the_image_of_the_one_remote_that_a_name_may_mean_is_told(self) -> None:
        self.fake.upstream[NGINX] = make_image(NGINX)
        answer, said = self.outcome("localhost:5005/library/nginx:1", only="docker.io")
        self.assertTrue(answer)
        self.assertIn(f"the engine has no {NGINX}", said)
        self.assertIn("docker.io has it", said)
        answer, said = self.outcome("localhost:5005/library/nginx:2", only="docker.io")
        self.assertFalse(answer)
        self.assertIn("the answer is 404", said)

    def test_an_image_of_another_platform_is_told_of(self) -> None:
        self.fake.store = ImageStore.CLASSIC
        self.fake.add(make_image(NGINX, platforms=["linux/amd64", "linux/arm64"], held=["linux/arm64"]))
        answer, said = self.outcome("nginx:1")
        self.assertTrue(answer)
        self.assertRegex(said, f"the engine has {NGINX}: .*, for linux/arm64")

    def test_a_tag_that_has_moved_is_told_and_how_old_the_answer_is(self) -> None:
        self.fake.upstream[NGINX] = new = make_image(NGINX, labels={"is": "new"})
        held = self.fake.add(make_image(NGINX))
        self.refresh = (RefreshRule("nginx", 3600),)
        database = open_database(self.state)
        self.addCleanup(database.close)
        records = TagRecords(database, InlineWorkers())

        def known(asked: float) -> None:
            record = TagRecord(held.root.digest, None, asked)
            self.successResultOf(Deferred.fromCoroutine(records.put(parse_image("nginx:1"), record)))

        answer, said = self.outcome("nginx:1")
        self.assertTrue(answer)
        self.assertIn("it is not refreshed: nothing shows that Docker's image came from docker.io", said)
        known(-600)
        answer, said = self.outcome("nginx:1")
        self.assertTrue(answer)
        self.assertIn("docker.io has the same image for it, by its answer of 10 min ago", said)
        known(-7200)
        answer, said = self.outcome("nginx:1")
        self.assertTrue(answer)
        self.assertIn(f"docker.io has another image for it, {new.root.digest}, by its answer of 0 s ago", said)
        self.assertTrue(said.endswith("Docker pulls it, and then the node gets it"), said)
        self.fake.upstream[NGINX] = PullError(500, "toomanyrequests: You have reached your pull rate limit")
        answer, said = self.outcome("nginx:1")
        self.assertTrue(answer)
        self.assertIn("Docker's image is served: its registry does not say whether it has moved: toomanyreq", said)
        self.assertIn("it last answered 2 h ago", said)
        self.assertIn(f"by Docker's own digest, {held.root.digest}", said)

    def test_podman_cannot_be_asked_before(self) -> None:
        self.fake.store = ImageStore.PODMAN
        answer, said = self.outcome("nginx:1")
        self.assertTrue(answer)
        self.assertIn("without a pull", said)


class AgreementTests(WhyCase):
    """`why` says what a node is answered in every situation of the table of a pull."""

    own = table.OWN
    elsewhere = table.ELSEWHERE
    origin = None
    spelled = table.PullTable.spelled
    publish = table.PullTable.publish

    def check(self, store: ImageStore, text: str, *, fallback: bool = False, only: str = "") -> None:
        wrong = []
        for number, row in enumerate(table.rows(text)):
            # `why` cannot name an image twice, and names its own without `ns`.
            for by_digest in (False, True) if row.asked not in ("other twice", "own by ns") else ():
                expected = row.statuses[3 * by_digest]  # that of a GET, and of a node's HEAD
                answer, said = self.of_row(store, row, f"app{number}", by_digest, fallback, only)
                if answer != (expected == "200") or (not answer and f"the answer is {expected}" not in said):
                    wrong.append(f"{row.text}\n{expected}, but {said}\n")
        self.assertEqual(wrong, [], "\n".join(wrong))

    def of_row(
        self, store: ImageStore, row: table.Row, app: str, by_digest: bool, fallback: bool, only: str
    ) -> tuple[bool, str]:
        self.setUp()
        self.fake = self.engine = FakeEngine(store)
        self.engine.add(make_image(f"{self.elsewhere}/known:1"))
        root = table.PullTable.arrange(cast(Any, self), row, app)
        for name, there in list(self.engine.upstream.items()):
            if isinstance(there, FakeImage):
                self.engine.upstream[f"{name.rpartition(':')[0]}@{there.root.digest}"] = there
        path, _, ns = table.ASKED[row.asked].format(app=app, target="").removeprefix("/v2/").partition("?ns=")
        path = path.removesuffix("/manifests/")
        if row.pushed:
            root = self.push(Repository(None, path))
        self.engine.down = row.registry == "docker down"
        image = f"{ns or self.own}/{path}{f'@{root}' if by_digest else ':1'}"
        return self.outcome(image, fallback=fallback, only=only)

    def test_the_containerd_store(self) -> None:
        self.check(ImageStore.CONTAINERD, table.CONTAINERD)

    def test_the_classic_store(self) -> None:
        self.check(ImageStore.CLASSIC, table.CLASSIC)

    def test_origin_fallback(self) -> None:
        self.check(ImageStore.CLASSIC, table.FALLBACK_CLASSIC, fallback=True)
        self.check(ImageStore.CONTAINERD, table.FALLBACK_CONTAINERD, fallback=True)

    def test_one_remote(self) -> None:
        self.check(ImageStore.CONTAINERD, table.ONE_REMOTE, only="docker.io")


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
