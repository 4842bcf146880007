"""`k3dreg refresh`: what it says of each image, and its exit status."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.commands.refresh import open_records, refresh
from k3dreg.commands.why import parse_image
from k3dreg.docker.image import ImageStore
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.pull_credentials import PullCredentials
from k3dreg.registry.resolver import Resolver
from k3dreg.registry.tag_questions import TagQuestions
from k3dreg.registry.tag_records import TagRecord, TagRecords
from tests.fakes.databases import open_database
from tests.fakes.engine import FakeEngine, PullError
from tests.fakes.images import make_image
from tests.fakes.workers import InlineWorkers
from tests.unit.registry.test_refresh import Registries

NGINX = "docker.io/library/nginx:1"


class RefreshTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.engine = FakeEngine(ImageStore.CLASSIC)
        self.state = Path(self.mktemp())
        # A daemon that runs.
        self.daemons = open_database(self.state)
        self.addCleanup(self.daemons.close)
        self.records = TagRecords(self.daemons, InlineWorkers())

    def outcome(self, *images: str) -> tuple[int, list[str]]:
        clock, said = Clock(), list[str]()
        client, names, credentials = self.engine.client(clock), OwnNames(["localhost:5005"]), PullCredentials()
        database = open_records(self.state, said.append)
        self.addCleanup(database.close)
        tags = TagRecords(database, InlineWorkers(clock))
        questions = TagQuestions(tags, Registries(self.engine), client, credentials, names, clock)
        resolver = Resolver(client, clock, names, pulled=tags.pulled)
        references = [parse_image(image) for image in images]
        work = refresh(questions, resolver, credentials, client, names, references, said.append)
        done = Deferred.fromCoroutine(work)
        self.engine.flush()
        return self.successResultOf(done), said

    def pulled(self) -> None:
        """The daemon has had Docker pull an image."""
        held = self.engine.add(make_image(NGINX))
        image = self.successResultOf(Deferred.fromCoroutine(self.engine.client(Clock()).inspect(NGINX)))
        self.assertEqual(image.id, held.id(self.engine.store))
        self.successResultOf(Deferred.fromCoroutine(self.records.pulled(parse_image("nginx:1"), image)))

    def test_a_tag_that_moved_is_pulled_and_the_daemon_knows_the_image(self) -> None:
        self.pulled()
        new = self.engine.upstream[NGINX] = make_image(NGINX, labels={"is": "new"})
        status, (said,) = self.outcome("nginx:1")
        self.assertEqual(status, 0)
        self.assertIn(f"{NGINX}: moved: Docker pulled {new.root.digest}", said)
        record = self.records.find(parse_image("nginx:1"))
        assert isinstance(record, TagRecord)
        self.assertEqual(record.image, new.id(self.engine.store))

    def test_what_is_current_is_not_pulled(self) -> None:
        self.engine.upstream[NGINX] = make_image(NGINX)
        self.engine.pull_now(NGINX)
        self.pulled()
        self.engine.pull_now(NGINX)
        status, (said,) = self.outcome("nginx:1")
        self.assertEqual((status, self.engine.pulls), (0, []))
        self.assertIn("Docker has what docker.io has, sha256:", said)

    def test_what_was_built_here_is_not_replaced(self) -> None:
        self.engine.add(make_image(NGINX))
        self.engine.upstream[NGINX] = make_image(NGINX, labels={"is": "new"})
        status, (said,) = self.outcome("nginx:1")
        self.assertEqual((status, self.engine.pulls), (1, []))
        self.assertIn("not replaced: nothing shows that Docker's image came from docker.io", said)

    def test_each_image_is_told_of_and_one_that_fails_makes_the_status_1(self) -> None:
        self.pulled()
        self.engine.upstream[NGINX] = PullError(404, "manifest unknown")
        digest = f"nginx@sha256:{'0' * 64}"
        status, said = self.outcome("nginx:1", "redis", "localhost:5005/app", digest)
        self.assertEqual(status, 1)
        self.assertIn("manifest unknown", said[0])
        self.assertIn("Docker has no image docker.io/library/redis:latest. docker pull", said[1])
        self.assertIn("localhost:5005 is k3dreg itself", said[2])
        self.assertIn("a digest always means the same image", said[3])
        self.assertEqual(self.outcome(digest)[0], 0)

    def test_without_a_daemons_state_nothing_is_known(self) -> None:
        self.pulled()
        self.state = Path(self.mktemp())
        self.assertEqual(self.outcome("nginx:1")[0], 1)

    def test_a_state_that_cannot_be_read_is_told(self) -> None:
        self.pulled()
        self.state = Path(self.mktemp())
        self.state.mkdir()
        (self.state / "pushed.db").touch()
        status, said = self.outcome("nginx:1")
        self.assertEqual(status, 1)
        self.assertIn("what k3dreg had Docker pull is not known", said[0])
