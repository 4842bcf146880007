"""What was pushed: in memory as on the disk, whatever happens."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import StoreError, StoreFull
from k3dreg.oci.reference import Repository, Tag
from k3dreg.store import pushed_database
from k3dreg.store.database import DATABASE_FILE, Database, Statement, open_read_only
from k3dreg.store.interfaces import PushedManifest
from k3dreg.store.pushed import PushedContent, open_pushed
from k3dreg.store.pushed_database import PUSHED_TABLES, PushedRow, read_descriptors, read_pushed
from tests.fakes.databases import open_database
from tests.fakes.workers import InlineWorkers, ManualWorkers

APP, OTHER, HUBS = Repository(None, "app"), Repository(None, "team/other"), Repository("docker.io", "library/app")


def digest(n: int) -> Digest:
    return Digest.of(str(n).encode())


def manifest(n: int, *parts: int, subject: int | None = None) -> PushedManifest:
    descriptor = Descriptor(
        media_types.OCI_MANIFEST, digest(n), n, artifact_type="application/x", annotations={"number": str(n)}
    )
    return PushedManifest(descriptor, frozenset(map(digest, parts)), None if subject is None else digest(subject))


# As a file was made before manifests had a time.
FIRST_VERSION = f"""
CREATE TABLE blob (registry TEXT, path TEXT, digest TEXT, since REAL,
                   PRIMARY KEY (registry, path, digest)) WITHOUT ROWID;
CREATE TABLE manifest (registry TEXT, path TEXT, digest TEXT, descriptor TEXT, parts TEXT, subject TEXT,
                       PRIMARY KEY (registry, path, digest)) WITHOUT ROWID;
CREATE TABLE tag (registry TEXT, path TEXT, name TEXT, digest TEXT, PRIMARY KEY (registry, path, name)) WITHOUT ROWID;
INSERT INTO manifest VALUES ('', 'app', '{digest(1)}', '{json.dumps(manifest(1).descriptor.to_json())}', '[]', NULL);
PRAGMA user_version=1;
"""


class PushedCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.workers = InlineWorkers()
        self.pushed = self.reopened()

    def reopened(self) -> PushedContent:
        self.database = open_database(self.directory)
        self.addCleanup(self.database.close)
        return self.done(open_pushed(self.database, self.workers, self.clock))

    def done(self, coroutine: object) -> PushedContent:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))  # type: ignore[arg-type]

    def restart(self) -> None:
        self.done(self.pushed.close())
        self.database.close()
        self.pushed = self.reopened()


class AnswersTests(PushedCase):
    def test_everything_is_there_after_a_restart(self) -> None:
        self.done(self.pushed.add_blob(APP, digest(1), 1))
        self.done(self.pushed.add_manifest(APP, manifest(2, 1), [Tag("b"), Tag("a")]))
        self.done(self.pushed.add_manifest(HUBS, manifest(3, subject=2), []))
        for _ in range(2):
            self.assertEqual(self.pushed.repositories(), [APP, HUBS])
            self.assertEqual(sorted(self.pushed.tags(APP)), ["a", "b"])
            found = self.pushed.tagged(APP, Tag("a"))
            self.assertEqual(found, manifest(2, 1))
            assert found is not None
            self.assertEqual(found.descriptor.annotations, {})
            [text] = self.successResultOf(
                Deferred.fromCoroutine(self.pushed.descriptors(APP, [found.digest], 1))
            ).values()
            self.assertEqual(json.loads(text)["annotations"], {"number": "2"})
            self.assertEqual(self.pushed.blobs(APP), {digest(1): 1_000_000})
            self.assertEqual(self.pushed.referrers(HUBS, digest(2)), [manifest(3, subject=2)])
            self.assertEqual(self.pushed.referrers(APP, digest(2)), [])
            self.assertTrue(all(self.pushed.keeps(digest(n)) for n in (1, 2, 3)))
            self.restart()

    def test_a_manifest_has_the_time_at_which_it_was_pushed_last(self) -> None:
        for _ in range(2):
            self.clock.advance(1)
            self.done(self.pushed.add_manifest(APP, manifest(2), []))
        for _ in range(2):
            [found] = self.pushed.manifests(APP)
            self.assertEqual(found.since, 1_000_002)
            self.restart()

    def rows_of(self, old: Sequence[str]) -> list[PushedRow]:
        """The rows of a file of an older version, read by a command first, and then by the daemon."""
        with contextlib.closing(sqlite3.connect(self.directory / DATABASE_FILE)) as made:
            for script in old:
                made.executescript(script)
        with contextlib.closing(open_read_only(self.directory / DATABASE_FILE, (PUSHED_TABLES,))) as reader:
            found = read_pushed(reader)
        self.pushed = self.reopened()
        self.assertEqual(read_pushed(self.database), found)
        return found

    def test_a_file_of_the_first_version_is_read_and_written_on(self) -> None:
        self.database.close()
        (self.directory / DATABASE_FILE).unlink()
        [row] = self.rows_of([FIRST_VERSION])
        self.assertEqual((row.manifest, row.repository), (manifest(1), APP))
        self.done(self.pushed.add_manifest(APP, manifest(1), []))
        [found] = self.pushed.manifests(APP)
        self.assertEqual(found.since, 1_000_000)

    def test_a_file_of_the_second_version_is_read_and_written_on(self) -> None:
        self.database.close()
        (self.directory / DATABASE_FILE).unlink()
        second = "ALTER TABLE manifest ADD COLUMN since REAL DEFAULT 0; PRAGMA user_version=2;"
        blob, _ = self.rows_of([FIRST_VERSION, second, f"INSERT INTO blob VALUES ('', 'app', '{digest(2)}', 5.0);"])
        self.assertEqual((blob.blob, blob.since, blob.size), (digest(2), 5.0, 0))
        self.done(self.pushed.add_blob(APP, digest(2), 7))
        self.restart()
        self.assertEqual(self.pushed.sizes_at_start[digest(2)], 7)

    def test_a_repository_of_another_registry_is_another_repository(self) -> None:
        self.done(self.pushed.add_manifest(HUBS, manifest(1), [Tag("t")]))
        self.assertIsNone(self.pushed.tagged(APP, Tag("t")))
        self.assertFalse(self.pushed.has(APP))

    def test_a_tag_moves(self) -> None:
        self.done(self.pushed.add_manifest(APP, manifest(1), [Tag("t")]))
        self.done(self.pushed.add_manifest(APP, manifest(2), [Tag("t")]))
        for _ in range(2):
            self.assertEqual(self.pushed.tagged(APP, Tag("t")), manifest(2))
            self.assertEqual(self.pushed.manifest(APP, digest(1)), manifest(1))
            self.restart()

    def test_a_deleted_manifest_takes_its_tags_along_and_no_other(self) -> None:
        self.done(self.pushed.add_manifest(APP, manifest(1), [Tag("a"), Tag("b")]))
        self.done(self.pushed.add_manifest(APP, manifest(2, subject=1), [Tag("c")]))
        self.assertTrue(self.done(self.pushed.remove_manifest(APP, digest(1))))
        self.assertFalse(self.done(self.pushed.remove_manifest(APP, digest(1))))
        for _ in range(2):
            self.assertEqual(list(self.pushed.tags(APP)), ["c"])
            self.assertFalse(self.pushed.keeps(digest(1)))
            self.assertEqual(len(self.pushed.referrers(APP, digest(1))), 1)
            self.restart()
        self.done(self.pushed.remove_manifest(APP, digest(2)))
        self.assertEqual(self.pushed.repositories(), [])

    def test_a_deleted_tag_leaves_its_manifest(self) -> None:
        self.done(self.pushed.add_manifest(APP, manifest(1), [Tag("a")]))
        self.assertTrue(self.done(self.pushed.remove_tag(APP, Tag("a"))))
        self.assertFalse(self.done(self.pushed.remove_tag(APP, Tag("a"))))
        for _ in range(2):
            self.assertIsNone(self.pushed.tagged(APP, Tag("a")))
            self.assertEqual(self.pushed.manifest(APP, digest(1)), manifest(1))
            self.restart()

    def test_a_blob_is_kept_as_long_as_any_repository_has_it(self) -> None:
        for repository in (APP, OTHER):
            self.done(self.pushed.add_blob(repository, digest(1), 1))
        self.assertEqual(self.done(self.pushed.remove_blobs(APP, [digest(1), digest(2)])), 1)
        self.assertFalse(self.pushed.has_blob(APP, digest(1)))
        self.assertTrue(self.pushed.keeps(digest(1)))
        self.assertEqual(self.pushed.let_go(), [])
        self.done(self.pushed.remove_blobs(OTHER, [digest(1)]))
        self.assertFalse(self.pushed.keeps(digest(1)))
        self.assertTrue(self.pushed.was_pushed(digest(1)))
        self.assertEqual(self.pushed.let_go(), [digest(1)])
        self.done(self.pushed.add_blob(APP, digest(1), 1))
        self.assertEqual(self.pushed.let_go(), [])

    def test_asking_for_a_blob_is_a_use(self) -> None:
        self.done(self.pushed.add_blob(APP, digest(1), 1))
        self.clock.advance(500)
        self.assertTrue(self.pushed.has_blob(APP, digest(1)))
        self.assertEqual(self.pushed.blobs(APP), {digest(1): 1_000_500})


class WritingTests(PushedCase):
    def other(self, kind: type[Database] = Database) -> Database:
        """A database in another file, closed when the test ends."""
        database = kind(self.directory / "other", (PUSHED_TABLES,))
        self.addCleanup(database.close)
        return database

    def test_nothing_is_visible_before_it_is_written_and_waiting_changes_go_together(self) -> None:
        workers = ManualWorkers()
        pushed = PushedContent(self.other(), [], workers, self.clock)
        asked = [Deferred.fromCoroutine(pushed.add_blob(APP, digest(n), 1)) for n in range(3)]
        self.assertFalse(pushed.has_blob(APP, digest(0)))
        workers.work()
        self.assertTrue(pushed.has_blob(APP, digest(0)))
        self.assertFalse(pushed.has_blob(APP, digest(1)))
        self.assertEqual(len(workers.waiting), 1)
        workers.work()
        for each in asked:
            self.successResultOf(each)

    def test_who_leaves_does_not_take_the_change_along(self) -> None:
        workers = ManualWorkers()
        pushed = PushedContent(self.other(), [], workers, self.clock)
        asked = Deferred.fromCoroutine(pushed.add_blob(APP, digest(1), 1))
        asked.cancel()
        workers.work()
        self.assertTrue(pushed.has_blob(APP, digest(1)))
        self.failureResultOf(asked)

    def test_what_could_not_be_written_never_was(self) -> None:
        self.done(self.pushed.add_blob(APP, digest(1), 1))
        self.restart()
        self.database.close()
        pushed = self.pushed
        self.failureResultOf(Deferred.fromCoroutine(pushed.add_blob(APP, digest(2), 1)), StoreError)
        self.failureResultOf(Deferred.fromCoroutine(pushed.remove_blobs(APP, [digest(1)])), StoreError)
        self.assertEqual(list(pushed.blobs(APP)), [digest(1)])

    def test_a_blob_that_is_to_go_is_gone_at_once_and_back_when_that_cannot_be_written(self) -> None:
        for n in (1, 2, 3):
            self.done(self.pushed.add_blob(APP, digest(n), 1))
        workers = ManualWorkers()
        pushed = PushedContent(self.database, read_pushed(self.database), workers, self.clock)
        removing = Deferred.fromCoroutine(pushed.remove_blobs(APP, [digest(1), digest(2)]))
        again = Deferred.fromCoroutine(pushed.add_blob(APP, digest(2), 1))
        self.assertEqual([pushed.has_blob(APP, digest(n)) for n in (1, 2, 3)], [False, False, True])
        self.assertEqual(set(pushed.let_go()), {digest(1), digest(2)})
        self.database.close()
        workers.work()
        workers.work()
        self.failureResultOf(removing, StoreError)
        self.failureResultOf(again, StoreError)
        self.assertEqual([pushed.has_blob(APP, digest(n)) for n in (1, 2, 3)], [True, True, True])
        self.assertEqual(pushed.let_go(), [])

    def test_a_change_that_cannot_be_written_does_not_take_those_along_that_wait_with_it(self) -> None:
        class Picky(Database):
            def transact(self, statements: Sequence[Statement], *, removing: bool = False) -> list[int]:
                if any(str(digest(2)) in parameters for _, parameters in statements):
                    raise StoreFull("no room for this one")
                return super().transact(statements, removing=removing)

        workers = ManualWorkers()
        pushed = PushedContent(self.other(Picky), [], workers, self.clock)
        asked = [Deferred.fromCoroutine(pushed.add_blob(APP, digest(n), 1)) for n in range(4)]
        while workers.waiting:
            workers.work()
        self.failureResultOf(asked.pop(2), StoreFull)
        for each in asked:
            self.successResultOf(each)
        self.assertEqual(set(pushed.blobs(APP)), {digest(0), digest(1), digest(3)})

    def test_only_what_has_not_been_used_since_goes_when_that_is_asked(self) -> None:
        for n in (1, 2):
            self.done(self.pushed.add_blob(APP, digest(n), 1))
        since = self.clock.seconds()
        self.clock.advance(1)
        self.assertTrue(self.pushed.has_blob(APP, digest(2)))
        both = [digest(1), digest(2)]
        self.assertEqual(self.done(self.pushed.remove_blobs(APP, both, unused_since=since)), 1)
        self.assertEqual(list(self.pushed.blobs(APP)), [digest(2)])

    def test_closing_waits_for_what_is_being_written_and_takes_no_more(self) -> None:
        workers = ManualWorkers()
        pushed = PushedContent(self.other(), [], workers, self.clock)
        asked = Deferred.fromCoroutine(pushed.add_blob(APP, digest(1), 1))
        closed = Deferred.fromCoroutine(pushed.close())
        self.assertNoResult(closed)
        self.failureResultOf(Deferred.fromCoroutine(pushed.add_blob(APP, digest(2), 1)), StoreError)
        workers.work()
        self.successResultOf(asked)
        self.successResultOf(closed)


def test_annotations_are_read_from_the_disk_as_many_as_are_wanted(tmp_path: Path) -> None:
    wide = [
        evolve(manifest(n, subject=9), descriptor=evolve(manifest(n).descriptor, annotations={"a": "x" * 1000}))
        for n in range(4)
    ]
    with contextlib.closing(open_database(tmp_path)) as database:
        database.transact([pushed_database.add_manifest(APP, each) for each in wide])
        rows = read_pushed(database)
        assert all(row.manifest is not None and not row.manifest.descriptor.annotations for row in rows)
        digests = [each.digest for each in wide]
        found = read_descriptors(database, APP, [digest(7), *digests], 2500)
        assert list(found) == digests[:2]
        assert json.loads(found[digests[0]]) == wide[0].descriptor.to_json()
        assert list(read_descriptors(database, APP, digests, 1)) == digests[:1]
        assert read_descriptors(database, OTHER, digests, 1) == {}


@pytest.mark.parametrize("column", ["digest = 'none'", "descriptor = '{'", "path = 'No'", "subject = 'md5:1'"])
def test_a_list_with_what_k3dreg_never_wrote_is_an_error(tmp_path: Path, column: str) -> None:
    table = "tag" if column.startswith("digest") else "manifest"
    with contextlib.closing(open_database(tmp_path)) as database:
        database.transact(
            [pushed_database.add_manifest(APP, manifest(1)), pushed_database.add_tag(APP, "t", digest(1))]
        )
        database.transact([(f"UPDATE {table} SET {column}", ())])
        with pytest.raises(StoreError, match="did not write"):
            read_pushed(database)


class LikeAModel(RuleBasedStateMachine):
    """Any changes in any order, with restarts between them, against plain sets."""

    def __init__(self) -> None:
        super().__init__()
        self.case = PushedCase()
        self.case.setUp()
        self.blobs: set[tuple[Repository, int]] = set()
        self.manifests: set[tuple[Repository, int]] = set()
        self.tags: dict[tuple[Repository, str], int] = {}

    repositories = st.sampled_from([APP, OTHER])
    numbers = st.integers(0, 3)
    names = st.sampled_from(["a", "b"])

    @rule(repository=repositories, n=numbers)
    def add_blob(self, repository: Repository, n: int) -> None:
        self.case.done(self.case.pushed.add_blob(repository, digest(n), 1))
        self.blobs.add((repository, n))

    @rule(repository=repositories, n=numbers, names=st.lists(names))
    def add_manifest(self, repository: Repository, n: int, names: list[str]) -> None:
        self.case.done(self.case.pushed.add_manifest(repository, manifest(n), map(Tag, names)))
        self.manifests.add((repository, n))
        self.tags |= {(repository, name): n for name in names}

    @rule(repository=repositories, n=numbers)
    def remove_blob(self, repository: Repository, n: int) -> None:
        self.case.done(self.case.pushed.remove_blobs(repository, [digest(n)]))
        self.blobs.discard((repository, n))

    @rule(repository=repositories, n=numbers)
    def remove_manifest(self, repository: Repository, n: int) -> None:
        self.case.done(self.case.pushed.remove_manifest(repository, digest(n)))
        self.manifests.discard((repository, n))
        self.tags = {key: named for key, named in self.tags.items() if (key[0], named) != (repository, n)}

    @rule(repository=repositories, name=names)
    def remove_tag(self, repository: Repository, name: str) -> None:
        self.case.done(self.case.pushed.remove_tag(repository, Tag(name)))
        self.tags.pop((repository, name), None)

    @rule()
    def restart(self) -> None:
        self.case.restart()

    @invariant()
    def it_is_what_the_model_says(self) -> None:
        pushed = self.case.pushed
        for repository in (APP, OTHER):
            assert set(pushed.blobs(repository)) == {digest(n) for r, n in self.blobs if r == repository}
            assert {m.digest for m in pushed.manifests(repository)} == {
                digest(n) for r, n in self.manifests if r == repository
            }
            assert {name: pushed.tagged(repository, Tag(name)) for name in pushed.tags(repository)} == {
                name: manifest(n) for (r, name), n in self.tags.items() if r == repository
            }
        for n in range(4):
            held = any(number == n for _, number in self.blobs | self.manifests)
            assert pushed.keeps(digest(n)) == held

    def teardown(self) -> None:
        self.case.done(self.case.pushed.close())
        self.case.database.close()


TestLikeAModel = LikeAModel.TestCase
TestLikeAModel.settings = settings(max_examples=25, stateful_step_count=15)
