"""What was pushed: what is answered is what is on the disk, whatever happens."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

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
from k3dreg.oci.listing import in_order
from k3dreg.oci.reference import Reference, Repository, Tag
from k3dreg.store import pushed_queries, pushed_tables
from k3dreg.store.database import DATABASE_FILE, Database, Statement, open_read_only
from k3dreg.store.interfaces import PushedImage, PushedManifest
from k3dreg.store.pushed import PushedContent
from k3dreg.store.pushed_queries import PushedReader
from k3dreg.store.pushed_tables import PUSHED_TABLES
from tests.fakes.databases import blobs_in, manifests_in, open_database, tags_in
from tests.fakes.workers import InlineWorkers, ManualWorkers

T = TypeVar("T")

APP, OTHER, HUBS = Repository(None, "app"), Repository(None, "team/other"), Repository("docker.io", "library/app")
ALL = 1 << 60


def digest(n: int) -> Digest:
    return Digest.of(str(n).encode())


def manifest(n: int, *parts: int, subject: int | None = None) -> PushedManifest:
    descriptor = Descriptor(
        media_types.OCI_MANIFEST, digest(n), n, artifact_type="application/x", annotations={"number": str(n)}
    )
    return PushedManifest(descriptor, frozenset(map(digest, parts)), None if subject is None else digest(subject))


def served(n: int) -> Descriptor:
    """What a client is told of `manifest(n)`."""
    return Descriptor(media_types.OCI_MANIFEST, digest(n), n)


def tag(name: str, repository: Repository = APP) -> Reference:
    return Reference(repository, Tag(name))


# The queries that read whole tables, for commands and for collections.
WHOLE_TABLES = ("_KEPT", "_UNREFERENCED", "_UNREACHED", "_UNTAGGED_IMAGES")

# As a file was made before manifests had a time.
FIRST_VERSION = f"""
CREATE TABLE blob (registry TEXT, path TEXT, digest TEXT, since REAL,
                   PRIMARY KEY (registry, path, digest)) WITHOUT ROWID;
CREATE TABLE manifest (registry TEXT, path TEXT, digest TEXT, descriptor TEXT, parts TEXT, subject TEXT,
                       PRIMARY KEY (registry, path, digest)) WITHOUT ROWID;
CREATE TABLE tag (registry TEXT, path TEXT, name TEXT, digest TEXT, PRIMARY KEY (registry, path, name)) WITHOUT ROWID;
INSERT INTO manifest VALUES (
    '', 'app', '{digest(1)}', '{json.dumps(manifest(1).descriptor.to_json())}', '["{digest(2)}"]', '{digest(3)}');
INSERT INTO manifest VALUES (
    'docker.io', 'library/app', '{digest(4)}',
    '{{"mediaType": "", "digest": "{digest(4)}", "size": 4, "artifactType": "{"x" * 9999}"}}', '[]', NULL);
INSERT INTO tag VALUES ('', 'app', 't', '{digest(1)}');
INSERT INTO blob VALUES ('', 'app', '{digest(2)}', 5.0);
PRAGMA user_version=1;
"""
SECOND_VERSION = "ALTER TABLE manifest ADD COLUMN since REAL DEFAULT 0; PRAGMA user_version=2;"
THIRD_VERSION = "ALTER TABLE blob ADD COLUMN size INTEGER DEFAULT 0; UPDATE blob SET size=7; PRAGMA user_version=3;"

# Manifests have their columns of today; each module's tables have a version.
FOURTH_VERSION = f"""
DROP TABLE manifest;
CREATE TABLE manifest (registry TEXT, path TEXT, digest TEXT, media_type TEXT, size INTEGER, since REAL,
    subject TEXT, artifact_type TEXT, parts TEXT, descriptor TEXT, PRIMARY KEY (registry, path, digest)) WITHOUT ROWID;
INSERT INTO manifest VALUES ('', 'app', '{digest(1)}', '{served(1).media_type}', 1, 0, '{digest(3)}', 'application/x',
    '["{digest(2)}"]', '{json.dumps(manifest(1).descriptor.to_json())}');
INSERT INTO manifest VALUES ('docker.io', 'library/app', '{digest(4)}', '', 4, 0, NULL, '', '[]', '{{}}');
CREATE INDEX blob_by_digest ON blob (digest, size);
CREATE INDEX manifest_by_digest ON manifest (digest, size);
CREATE INDEX manifest_by_subject ON manifest (registry, path, subject, digest);
CREATE INDEX tag_by_digest ON tag (registry, path, digest);
CREATE INDEX tag_in_order ON tag (registry, path, name COLLATE NOCASE, name);
CREATE TABLE tables (name TEXT PRIMARY KEY, version INTEGER) WITHOUT ROWID;
INSERT INTO tables VALUES ('pushed', 4);
PRAGMA user_version=4;
"""


def without_times(images: Sequence[PushedImage]) -> list[PushedImage]:
    return [evolve(image, since=0.0, pulled=0.0) for image in images]


class PushedCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.open()

    def open(self) -> None:
        self.database = open_database(self.directory)
        self.addCleanup(self.database.close)
        self.pushed = PushedContent(self.database, InlineWorkers(), self.clock)

    def done(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def restart(self) -> None:
        self.done(self.pushed.close())
        self.database.close()
        self.open()

    def tags(self, repository: Repository) -> Sequence[str]:
        return self.done(self.pushed.tags(repository, None, ALL))

    def referrers(self, repository: Repository, subject: int, artifact_type: str | None = None) -> list[Digest]:
        page = self.done(self.pushed.referrers(repository, digest(subject), artifact_type, None, ALL))
        return list(page.descriptors)


class AnswersTests(PushedCase):
    def test_everything_is_there_after_a_restart(self) -> None:
        self.done(self.pushed.add_blob(APP, digest(1), 1))
        self.done(self.pushed.add_manifest(APP, manifest(2, 1), [Tag("b"), Tag("a")]))
        self.done(self.pushed.add_manifest(HUBS, manifest(3, subject=2), []))
        for _ in range(2):
            self.assertEqual(self.done(self.pushed.own_names(None, ALL)), ["app"])
            self.assertEqual(self.tags(APP), ["a", "b"])
            for reference in (tag("a"), tag("b"), Reference(APP, digest(2))):
                self.assertEqual(self.pushed.find(reference), served(2))
            self.assertIsNone(self.pushed.find(tag("c")))
            self.assertEqual(self.pushed.kept(), {digest(1): 1, digest(2): 2, digest(3): 3})
            self.assertEqual(self.referrers(HUBS, 2), [digest(3)])
            self.assertEqual(self.referrers(APP, 2), [])
            self.assertTrue(all(self.pushed.keeps(digest(n)) for n in (1, 2, 3)))
            self.assertEqual([self.pushed.has(each) for each in (APP, HUBS, OTHER)], [True, True, False])
            self.restart()

    def test_a_manifest_has_the_time_at_which_it_was_pushed_last(self) -> None:
        for _ in range(2):
            self.clock.advance(1)
            self.done(self.pushed.add_manifest(APP, manifest(2), []))
        self.assertEqual(manifests_in(self.database, APP), {digest(2): 1_000_002})

    def test_a_repository_of_another_registry_is_another_repository(self) -> None:
        self.done(self.pushed.add_manifest(HUBS, manifest(1), [Tag("t")]))
        self.assertIsNone(self.pushed.find(tag("t")))
        self.assertFalse(self.pushed.has(APP))

    def test_a_tag_moves(self) -> None:
        self.done(self.pushed.add_manifest(APP, manifest(1), [Tag("t")]))
        self.done(self.pushed.add_manifest(APP, manifest(2), [Tag("t")]))
        self.assertEqual(self.pushed.find(tag("t")), served(2))
        self.assertEqual(self.pushed.find(Reference(APP, digest(1))), served(1))

    def test_a_deleted_manifest_takes_its_tags_along_and_no_other(self) -> None:
        self.done(self.pushed.add_manifest(APP, manifest(1), [Tag("a"), Tag("b")]))
        self.done(self.pushed.add_manifest(APP, manifest(2, subject=1), [Tag("c")]))
        self.assertTrue(self.done(self.pushed.remove_manifest(APP, digest(1))))
        self.assertFalse(self.done(self.pushed.remove_manifest(APP, digest(1))))
        self.assertEqual(self.tags(APP), ["c"])
        self.assertFalse(self.pushed.keeps(digest(1)))
        self.assertEqual(self.referrers(APP, 1), [digest(2)])
        self.done(self.pushed.remove_manifest(APP, digest(2)))
        self.assertFalse(self.pushed.has(APP))
        self.assertEqual(self.done(self.pushed.own_names(None, ALL)), [])

    def test_a_deleted_tag_leaves_its_manifest(self) -> None:
        self.done(self.pushed.add_manifest(APP, manifest(1), [Tag("a")]))
        self.assertTrue(self.done(self.pushed.remove_tag(APP, Tag("a"))))
        self.assertFalse(self.done(self.pushed.remove_tag(APP, Tag("a"))))
        self.assertIsNone(self.pushed.find(tag("a")))
        self.assertEqual(self.pushed.find(Reference(APP, digest(1))), served(1))

    def test_a_blob_is_kept_as_long_as_any_repository_has_it(self) -> None:
        for repository in (APP, OTHER):
            self.done(self.pushed.add_blob(repository, digest(1), 1))
        self.assertFalse(self.done(self.pushed.remove_blob(APP, digest(2))))
        self.assertTrue(self.done(self.pushed.remove_blob(APP, digest(1))))
        self.assertFalse(self.pushed.has_blob(APP, digest(1)))
        self.assertTrue(self.pushed.keeps(digest(1)))
        self.assertEqual(self.done(self.pushed.let_go()), [])
        self.done(self.pushed.remove_blob(OTHER, digest(1)))
        self.assertFalse(self.pushed.keeps(digest(1)))
        self.assertTrue(self.pushed.was_pushed(digest(1)))
        self.assertFalse(self.pushed.was_pushed(digest(2)))
        self.assertEqual(self.done(self.pushed.let_go()), [digest(1)])
        self.done(self.pushed.add_blob(APP, digest(1), 1))
        self.assertEqual(self.done(self.pushed.let_go()), [])
        self.done(self.pushed.remove_blob(APP, digest(1)))
        self.pushed.forget(digest(1))
        self.assertFalse(self.pushed.was_pushed(digest(1)))

    def test_a_size_that_is_known_counts_more_than_one_that_is_not(self) -> None:
        self.done(self.pushed.add_blob(APP, digest(1), 0))
        self.done(self.pushed.add_blob(OTHER, digest(1), 7))
        self.assertEqual(self.pushed.kept(), {digest(1): 7})

    def test_images_are_listed_with_all_that_is_theirs(self) -> None:
        self.done(self.pushed.add_manifest(APP, manifest(1, 2, 3), []))
        self.done(self.pushed.add_manifest(APP, manifest(4, 1, 5), [Tag("b"), Tag("A")]))
        self.done(self.pushed.add_manifest(HUBS, manifest(1, 2), [Tag("t")]))
        index = frozenset(map(digest, (4, 1, 5, 2, 3)))
        expected = [
            PushedImage(APP, "A", digest(4), 1_000_000, index),
            PushedImage(APP, "b", digest(4), 1_000_000, index),
            PushedImage(HUBS, "t", digest(1), 1_000_000, frozenset([digest(1), digest(2)])),
        ]
        self.assertEqual(self.done(self.pushed.images(10)), (expected, 3))
        self.assertEqual(self.done(self.pushed.images(1)), (expected[:1], 3))
        untagged = PushedImage(APP, None, digest(1), 1_000_000, frozenset(map(digest, (1, 2, 3))))
        self.assertEqual(pushed_queries.all_images(self.database), [*expected, untagged])


class PageTests(PushedCase):
    def test_tags_come_in_pages_in_the_order_of_the_alphabet_not_of_the_case(self) -> None:
        names = ["b", "B", "a", "C", "1", "_", "Z", "z.1", "ab", "A-b", "aB"]
        self.done(self.pushed.add_manifest(APP, manifest(1), map(Tag, names)))
        self.done(self.pushed.add_manifest(OTHER, manifest(1), [Tag("other")]))
        found, last = list[str](), None
        while page := self.done(self.pushed.tags(APP, last, 2)):
            found += page
            last = page[-1]
        self.assertEqual(found, in_order(names))
        self.assertEqual(self.done(self.pushed.tags(APP, "BA", 2)), ["C", "Z"])
        self.assertEqual(self.done(self.pushed.tags(APP, None, 0)), [])

    def test_repositories_come_in_pages_and_each_once(self) -> None:
        for n, name in enumerate(["a", "a-b", "a/b", "b", "c"]):
            self.done(self.pushed.add_manifest(Repository(None, name), manifest(n), [Tag("1"), Tag("2")]))
            self.done(self.pushed.add_manifest(Repository(None, name), manifest(n + 1), [Tag("3")]))
            self.done(self.pushed.add_blob(Repository(None, name if n % 2 else f"{name}-blob"), digest(9), 1))
        self.done(self.pushed.add_blob(HUBS, digest(1), 1))
        found, last = list[str](), None
        while page := self.done(self.pushed.own_names(last, 3)):
            found += page
            last = page[-1]
        self.assertEqual(found, sorted(["a", "a-b", "a/b", "b", "c", "a-blob", "a/b-blob", "c-blob"]))
        self.assertEqual(self.done(self.pushed.own_names("a0", 1)), ["b"])

    def test_a_page_of_referrers_ends_where_there_is_no_more_room(self) -> None:
        wide = [
            evolve(manifest(n, subject=9), descriptor=evolve(manifest(n).descriptor, annotations={"a": "x" * 1000}))
            for n in range(4)
        ]
        for each in wide:
            self.done(self.pushed.add_manifest(APP, each, []))
        found, last, sizes = list[Digest](), None, list[int]()
        more = True
        while more:
            page = self.done(self.pushed.referrers(APP, digest(9), None, last, 3800))
            found += page.descriptors
            sizes.append(len(page.descriptors))
            last, more = str(found[-1]), page.more
        self.assertEqual((found, sizes), (sorted(each.digest for each in wide), [3, 1]))
        page = self.done(self.pushed.referrers(APP, digest(9), None, None, 1))
        [(first, text)] = page.descriptors.items()
        self.assertTrue(page.more)
        [original] = [each for each in wide if each.digest == first]
        self.assertEqual(json.loads(text), original.descriptor.to_json())

    def test_referrers_of_another_type_are_left_out(self) -> None:
        self.done(self.pushed.add_manifest(APP, manifest(1, subject=9), []))
        self.assertEqual(self.referrers(APP, 9, "application/x"), [digest(1)])
        self.assertEqual(self.referrers(APP, 9, "application/y"), [])

    def test_queries_use_indexes(self) -> None:
        with contextlib.closing(sqlite3.connect(self.directory / DATABASE_FILE)) as connection:
            for name, query in vars(pushed_queries).items():
                if not isinstance(query, str) or "SELECT" not in query or name in WHOLE_TABLES:
                    continue
                count = max(map(int, re.findall(r"\?(\d)", query)), default=query.count("?"))
                plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", [None] * count)]
                wrong = r"SCAN (blob|manifest|tag)(?! USING (COVERING )?INDEX)|USE TEMP B-TREE"
                self.assertEqual([step for step in plan if re.match(wrong, step)], [], (name, plan))


class UpgradeTests(PushedCase):
    """A database of an older version is read by commands, and upgraded by the daemon."""

    def check(self, *scripts: str, size: int) -> None:
        self.database.close()
        (self.directory / DATABASE_FILE).unlink()
        with contextlib.closing(sqlite3.connect(self.directory / DATABASE_FILE)) as made:
            for script in scripts:
                made.executescript(script)
        before = (self.directory / DATABASE_FILE).read_bytes()
        with contextlib.closing(open_read_only(self.directory / DATABASE_FILE, (PUSHED_TABLES,))) as reader:
            self.assertEqual(PushedReader(reader).find(tag("t")), served(1))
            images = without_times(pushed_queries.all_images(reader))
        self.assertEqual((self.directory / DATABASE_FILE).read_bytes(), before)
        self.open()
        self.assertEqual(without_times(pushed_queries.all_images(self.database)), images)
        for _ in range(2):
            self.assertEqual(self.pushed.find(tag("t")), served(1))
            self.assertEqual(self.pushed.find(Reference(HUBS, digest(4))), Descriptor("", digest(4), 4))
            self.assertTrue(self.pushed.has_blob(APP, digest(2)))
            self.assertEqual(self.pushed.kept(), {digest(1): 1, digest(2): size, digest(4): 4})
            page = self.done(self.pushed.referrers(APP, digest(3), "application/x", None, ALL))
            self.assertEqual(json.loads(page.descriptors[digest(1)]), manifest(1).descriptor.to_json())
            self.assertEqual(blobs_in(self.database, APP), {digest(2): 5.0})
            self.assertEqual(manifests_in(self.database, APP), {digest(1): 0.0})
            self.assertEqual(self.done(self.pushed.remove_idle_blobs(ALL)), 0)
            self.restart()
        self.done(self.pushed.add_blob(APP, digest(2), 8))
        self.assertEqual(self.pushed.kept()[digest(2)], 8)

    def test_the_first_version(self) -> None:
        self.check(FIRST_VERSION, size=0)

    def test_the_second_version(self) -> None:
        self.check(FIRST_VERSION, SECOND_VERSION, size=0)

    def test_the_third_version_that_of_0_1_0(self) -> None:
        self.check(FIRST_VERSION, SECOND_VERSION, THIRD_VERSION, size=7)

    def test_the_fourth_version(self) -> None:
        self.check(FIRST_VERSION, SECOND_VERSION, THIRD_VERSION, FOURTH_VERSION, size=7)

    def test_tags_have_the_time_of_their_manifest_and_count_as_pulled_at_the_upgrade(self) -> None:
        old, known = self.directory / "old.db", "UPDATE manifest SET since=5 WHERE path='app';"
        for tag_time, script in ((None, ""), (5.0, known)):
            with contextlib.closing(sqlite3.connect(old)) as made:
                made.executescript(FIRST_VERSION + SECOND_VERSION + THIRD_VERSION + FOURTH_VERSION + script)
            with contextlib.closing(Database(old, (PUSHED_TABLES,))) as database:
                [image] = pushed_queries.tagged_images(database, 10)
            self.assertGreater(image.pulled, 1.7e9)
            self.assertEqual(image.since, tag_time or image.pulled)
            old.unlink()

    def test_a_file_whose_descriptors_are_no_json_is_an_error_and_stays_as_it_is(self) -> None:
        self.database.close()
        with contextlib.closing(sqlite3.connect(self.directory / "old.db")) as made:
            made.executescript(FIRST_VERSION + "UPDATE manifest SET descriptor='{';")
        before = (self.directory / "old.db").read_bytes()
        with pytest.raises(StoreError):
            open_read_only(self.directory / "old.db", (PUSHED_TABLES,))
        assert (self.directory / "old.db").read_bytes() == before
        with pytest.raises(StoreError):
            Database(self.directory / "old.db", (PUSHED_TABLES,))
        with contextlib.closing(sqlite3.connect(self.directory / "old.db")) as old:
            self.assertEqual(old.execute("PRAGMA user_version").fetchone(), (1,))


class WritingTests(PushedCase):
    def other(self, workers: InlineWorkers, kind: type[Database] = Database) -> PushedContent:
        """Content in another file, closed when the test ends."""
        self.others = kind(self.directory / "other", (PUSHED_TABLES,))
        self.addCleanup(self.others.close)
        return PushedContent(self.others, workers, self.clock)

    def test_nothing_is_visible_before_it_is_written_and_waiting_changes_go_together(self) -> None:
        workers = ManualWorkers()
        pushed = self.other(workers)
        asked = [Deferred.fromCoroutine(pushed.add_blob(APP, digest(n), 1)) for n in range(3)]
        self.assertFalse(pushed.has_blob(APP, digest(0)))
        workers.work()
        self.assertTrue(pushed.has_blob(APP, digest(0)))
        self.assertFalse(pushed.has_blob(APP, digest(1)))
        self.assertEqual(len(workers.waiting), 1)
        workers.work()
        for each in asked:
            self.successResultOf(each)

    def test_changes_take_effect_in_the_order_of_the_calls(self) -> None:
        workers = ManualWorkers()
        pushed = self.other(workers)
        calls = [
            Deferred.fromCoroutine(each)
            for each in (
                pushed.add_manifest(APP, manifest(1), [Tag("a")]),
                pushed.remove_tag(APP, Tag("a")),
                pushed.remove_tag(APP, Tag("a")),
                pushed.add_manifest(APP, manifest(2), [Tag("a")]),
                pushed.remove_manifest(APP, digest(1)),
            )
        ]
        workers.work_all()
        self.assertEqual([self.successResultOf(each) for each in calls], [None, True, False, None, True])
        self.assertEqual(tags_in(self.others, APP), {"a": digest(2)})

    def test_cancelling_does_not_cancel_the_change(self) -> None:
        workers = ManualWorkers()
        pushed = self.other(workers)
        asked = Deferred.fromCoroutine(pushed.add_blob(APP, digest(1), 1))
        asked.cancel()
        workers.work()
        self.assertTrue(pushed.has_blob(APP, digest(1)))
        self.failureResultOf(asked)

    def test_a_closed_database_is_an_error(self) -> None:
        self.database.close()
        self.failureResultOf(Deferred.fromCoroutine(self.pushed.add_blob(APP, digest(2), 1)), StoreError)
        self.failureResultOf(Deferred.fromCoroutine(self.pushed.tags(APP, None, 1)), StoreError)
        with self.assertRaises(StoreError):
            self.pushed.find(tag("t"))

    def test_a_blob_that_is_to_go_is_gone_at_once_and_back_when_that_cannot_be_written(self) -> None:
        class Failing(Database):
            fails = False

            def transact(self, statements: Sequence[Statement], *, removing: bool = False) -> list[int]:
                if self.fails:
                    raise StoreError("the disk is broken")
                return super().transact(statements, removing=removing)

        workers = ManualWorkers()
        pushed = self.other(workers, Failing)
        for n in (1, 2, 3):
            Deferred.fromCoroutine(pushed.add_blob(APP, digest(n), 1))
        workers.work_all()
        self.others.fails = True  # type: ignore[attr-defined]
        removing = [Deferred.fromCoroutine(pushed.remove_blob(APP, digest(n))) for n in (1, 2)]
        again = Deferred.fromCoroutine(pushed.add_blob(APP, digest(2), 1))
        self.assertEqual([pushed.has_blob(APP, digest(n)) for n in (1, 2, 3)], [False, False, True])
        workers.work_all()
        for each in (*removing, again):
            self.failureResultOf(each, StoreError)
        self.assertEqual([pushed.has_blob(APP, digest(n)) for n in (1, 2, 3)], [True, True, True])
        self.assertTrue(all(pushed.keeps(digest(n)) for n in (1, 2, 3)))

    def test_a_removal_that_is_cancelled_denies_the_blob_until_it_is_gone(self) -> None:
        workers = ManualWorkers()
        pushed = self.other(workers)
        Deferred.fromCoroutine(pushed.add_blob(APP, digest(1), 1))
        workers.work_all()
        removing = Deferred.fromCoroutine(pushed.remove_blob(APP, digest(1)))
        removing.cancel()
        self.failureResultOf(removing)
        self.assertFalse(pushed.has_blob(APP, digest(1)))
        workers.work_all()
        self.assertEqual(blobs_in(self.others, APP), {})

    def test_a_change_that_cannot_be_written_does_not_take_those_along_that_wait_with_it(self) -> None:
        class Picky(Database):
            def transact(self, statements: Sequence[Statement], *, removing: bool = False) -> list[int]:
                if any(str(digest(2)) in parameters for _, parameters in statements):
                    raise StoreFull("no room for this one")
                return super().transact(statements, removing=removing)

        workers = ManualWorkers()
        pushed = self.other(workers, Picky)
        asked = [Deferred.fromCoroutine(pushed.add_blob(APP, digest(n), 1)) for n in range(4)]
        workers.work_all()
        self.failureResultOf(asked.pop(2), StoreFull)
        for each in asked:
            self.successResultOf(each)
        self.assertEqual(set(blobs_in(self.others, APP)), {digest(0), digest(1), digest(3)})

    def test_closing_waits_for_what_is_being_written_and_takes_no_more(self) -> None:
        workers = ManualWorkers()
        pushed = self.other(workers)
        asked = Deferred.fromCoroutine(pushed.add_blob(APP, digest(1), 1))
        closed = Deferred.fromCoroutine(pushed.close())
        self.assertNoResult(closed)
        self.failureResultOf(Deferred.fromCoroutine(pushed.add_blob(APP, digest(2), 1)), StoreError)
        workers.work()
        self.successResultOf(asked)
        self.successResultOf(closed)


class CollectingTests(PushedCase):
    def test_blobs_go_that_no_manifest_of_their_repository_refers_to_and_that_were_not_used(self) -> None:
        for n in range(1, 6):
            self.done(self.pushed.add_blob(APP, digest(n), 1))
        self.done(self.pushed.add_blob(OTHER, digest(1), 1))
        self.done(self.pushed.add_manifest(APP, manifest(10, 1, 2), []))
        since = self.clock.seconds()
        self.clock.advance(1)
        self.assertTrue(self.pushed.has_blob(APP, digest(3)))
        self.done(self.pushed.add_blob(APP, digest(4), 1))
        self.assertEqual(self.done(self.pushed.remove_idle_blobs(since)), 2)
        self.assertEqual(set(blobs_in(self.database, APP)), {digest(n) for n in (1, 2, 3, 4)})
        self.assertEqual(blobs_in(self.database, OTHER), {})
        self.assertEqual(self.done(self.pushed.let_go()), [digest(5)])

    def test_a_use_is_remembered_as_long_as_it_counts(self) -> None:
        self.done(self.pushed.add_blob(APP, digest(1), 1))
        for _ in range(3):
            self.clock.advance(10)
            self.assertTrue(self.pushed.has_blob(APP, digest(1)))
            self.assertEqual(self.done(self.pushed.remove_idle_blobs(self.clock.seconds() - 5)), 0)
        self.clock.advance(10)
        self.assertEqual(self.done(self.pushed.remove_idle_blobs(self.clock.seconds() - 5)), 1)

    def test_a_blob_that_is_pushed_again_while_it_is_looked_for_stays(self) -> None:
        self.done(self.pushed.add_blob(APP, digest(1), 1))
        self.clock.advance(10)
        workers = ManualWorkers()
        pushed = PushedContent(self.database, workers, self.clock)
        collecting = Deferred.fromCoroutine(pushed.remove_idle_blobs(self.clock.seconds() - 5))
        again = Deferred.fromCoroutine(pushed.add_blob(APP, digest(1), 1))
        workers.work_all()
        self.successResultOf(again)
        self.assertEqual(self.successResultOf(collecting), 0)
        self.assertTrue(pushed.has_blob(APP, digest(1)))

    def test_a_blob_that_a_client_was_told_of_while_it_is_looked_for_stays(self) -> None:
        self.done(self.pushed.add_blob(APP, digest(1), 1))
        self.clock.advance(10)
        workers = ManualWorkers()
        pushed = PushedContent(self.database, workers, self.clock)
        collecting = Deferred.fromCoroutine(pushed.remove_idle_blobs(self.clock.seconds() - 5))
        self.assertTrue(pushed.has_blob(APP, digest(1)))
        workers.work_all()
        self.assertEqual(self.successResultOf(collecting), 0)
        self.assertTrue(pushed.has_blob(APP, digest(1)))

    def test_much_goes_in_several_transactions(self) -> None:
        for n in range(120):
            self.done(self.pushed.add_blob(APP, digest(n), 1))
            self.done(self.pushed.add_manifest(OTHER, manifest(1000 + n), []))
        self.assertEqual(self.done(self.pushed.remove_idle_blobs(ALL)), 120)
        self.assertEqual(self.done(self.pushed.remove_untagged_manifests()), 120)
        self.assertEqual(len(self.done(self.pushed.let_go())), 240)


@pytest.mark.parametrize("change", ["digest = 'none'", "digest = 'md5:1'"])
def test_what_k3dreg_never_wrote_is_an_error(tmp_path: Path, change: str) -> None:
    with contextlib.closing(open_database(tmp_path)) as database:
        database.transact(
            [pushed_tables.add_manifest(APP, manifest(1), 0.0), pushed_tables.add_tag(APP, "t", digest(1), 0.0)]
        )
        database.transact([(f"UPDATE {table} SET {change}", ()) for table in ("manifest", "tag")])
        pushed = PushedContent(database, InlineWorkers(), Clock())
        for use in (lambda: pushed.find(tag("t")), pushed.kept, lambda: pushed_queries.all_images(database)):
            with pytest.raises(StoreError, match="did not write"):
                use()


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
        existed = self.case.done(self.case.pushed.remove_blob(repository, digest(n)))
        assert existed == ((repository, n) in self.blobs)
        self.blobs.discard((repository, n))

    @rule(repository=repositories, n=numbers)
    def remove_manifest(self, repository: Repository, n: int) -> None:
        existed = self.case.done(self.case.pushed.remove_manifest(repository, digest(n)))
        assert existed == ((repository, n) in self.manifests)
        self.manifests.discard((repository, n))
        self.tags = {key: named for key, named in self.tags.items() if (key[0], named) != (repository, n)}

    @rule(repository=repositories, name=names)
    def remove_tag(self, repository: Repository, name: str) -> None:
        existed = self.case.done(self.case.pushed.remove_tag(repository, Tag(name)))
        assert existed == ((repository, name) in self.tags)
        self.tags.pop((repository, name), None)

    @rule()
    def restart(self) -> None:
        self.case.restart()

    @invariant()
    def it_is_what_the_model_says(self) -> None:
        pushed = self.case.pushed
        for repository in (APP, OTHER):
            tags = {name: n for (r, name), n in self.tags.items() if r == repository}
            assert self.case.tags(repository) == sorted(tags)
            for name in ("a", "b"):
                found = pushed.find(tag(name, repository))
                assert found == (served(tags[name]) if name in tags else None)
            for n in range(4):
                assert pushed.has_blob(repository, digest(n)) == ((repository, n) in self.blobs)
                found = pushed.find(Reference(repository, digest(n)))
                assert found == (served(n) if (repository, n) in self.manifests else None)
            assert pushed.has(repository) == any(r == repository for r, _ in self.blobs | self.manifests)
        for n in range(4):
            assert pushed.keeps(digest(n)) == any(number == n for _, number in self.blobs | self.manifests)

    def teardown(self) -> None:
        self.case.done(self.case.pushed.close())
        self.case.database.close()


TestLikeAModel = LikeAModel.TestCase
TestLikeAModel.settings = settings(max_examples=25, stateful_step_count=15)
