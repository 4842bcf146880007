"""What was pushed: in memory as on the disk, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
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
from k3dreg.store import database, pushed_database
from k3dreg.store.interfaces import PushedManifest
from k3dreg.store.pushed import DATABASE_FILE, PushedContent, open_pushed
from k3dreg.store.pushed_database import PushedDatabase, Statement
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
        pushed = self.done(open_pushed(self.directory, self.workers, self.clock))
        self.addCleanup(lambda: self.done(pushed.close()))
        return pushed

    def done(self, coroutine: object) -> PushedContent:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))  # type: ignore[arg-type]

    def restart(self) -> None:
        self.done(self.pushed.close())
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

    def test_a_file_of_the_first_version_is_read_and_written_on(self) -> None:
        file = self.directory / "old"
        with contextlib.closing(sqlite3.connect(file)) as old:
            old.executescript(FIRST_VERSION)
        for read_only in (True, False, True):
            book = PushedDatabase(file, read_only=read_only)
            [row] = book.read()
            self.assertEqual((row.manifest, row.repository), (manifest(1), APP))
            book.close()
        book = PushedDatabase(file)
        book.write([pushed_database.add_manifest(APP, evolve(manifest(1), since=5.0))])
        [row] = book.read()
        book.close()
        assert row.manifest is not None
        self.assertEqual(row.manifest.since, 5.0)

    def test_a_file_of_the_second_version_is_read_and_written_on(self) -> None:
        file = self.directory / "old"
        with contextlib.closing(sqlite3.connect(file)) as old:
            old.executescript(FIRST_VERSION)
            old.executescript("ALTER TABLE manifest ADD COLUMN since REAL DEFAULT 0; PRAGMA user_version=2;")
            old.execute("INSERT INTO blob VALUES ('', 'app', ?, 5.0)", (str(digest(2)),))
            old.commit()
        for read_only in (True, False, True):
            book = PushedDatabase(file, read_only=read_only)
            blob, _ = book.read()
            self.assertEqual((blob.blob, blob.since, blob.size), (digest(2), 5.0, 0))
            book.close()
        book = PushedDatabase(file)
        book.write([pushed_database.add_blob(APP, digest(2), 7, 6.0)])
        blob, _ = book.read()
        book.close()
        self.assertEqual((blob.blob, blob.since, blob.size), (digest(2), 6.0, 7))

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
    def other(self, kind: type[PushedDatabase] = PushedDatabase) -> PushedDatabase:
        """A list in another file, closed when the test ends."""
        book = kind(self.directory / "other")
        self.addCleanup(book.close)
        return book

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
        file = PushedDatabase(self.directory / DATABASE_FILE)
        pushed = PushedContent(file, file.read(), self.workers, self.clock)
        file.close()
        self.failureResultOf(Deferred.fromCoroutine(pushed.add_blob(APP, digest(2), 1)), StoreError)
        self.failureResultOf(Deferred.fromCoroutine(pushed.remove_blobs(APP, [digest(1)])), StoreError)
        self.assertEqual(list(pushed.blobs(APP)), [digest(1)])

    def test_a_blob_that_is_to_go_is_gone_at_once_and_back_when_that_cannot_be_written(self) -> None:
        for n in (1, 2, 3):
            self.done(self.pushed.add_blob(APP, digest(n), 1))
        file = PushedDatabase(self.directory / DATABASE_FILE)
        workers = ManualWorkers()
        pushed = PushedContent(file, file.read(), workers, self.clock)
        removing = Deferred.fromCoroutine(pushed.remove_blobs(APP, [digest(1), digest(2)]))
        again = Deferred.fromCoroutine(pushed.add_blob(APP, digest(2), 1))
        self.assertEqual([pushed.has_blob(APP, digest(n)) for n in (1, 2, 3)], [False, False, True])
        self.assertEqual(set(pushed.let_go()), {digest(1), digest(2)})
        file.close()
        workers.work()
        workers.work()
        self.failureResultOf(removing, StoreError)
        self.failureResultOf(again, StoreError)
        self.assertEqual([pushed.has_blob(APP, digest(n)) for n in (1, 2, 3)], [True, True, True])
        self.assertEqual(pushed.let_go(), [])

    def test_a_change_that_cannot_be_written_does_not_take_those_along_that_wait_with_it(self) -> None:
        class Picky(PushedDatabase):
            def write(self, statements: Sequence[Statement], *, removing: bool = False) -> None:
                if any(str(digest(2)) in parameters for _, parameters in statements):
                    raise StoreFull("no room for this one")
                super().write(statements, removing=removing)

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
        workers.work()
        self.successResultOf(closed)


# For another Python, that it has the same packages.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to be looked at" * 20])
def test_a_file_that_is_no_list_is_an_error_and_is_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / DATABASE_FILE
    file.write_bytes(content)
    with pytest.raises(StoreError):
        PushedDatabase(file).read()
    assert file.read_bytes() == content


@pytest.mark.parametrize("read_only", [True, False])
def test_an_empty_file_is_damage_and_not_a_list_of_nothing(tmp_path: Path, read_only: bool) -> None:
    file = tmp_path / DATABASE_FILE
    file.touch()
    Path(f"{file}-wal").write_bytes(b"what may be left of it")
    book = PushedDatabase(file, read_only=read_only)
    for use in (book.read, lambda: book.write([pushed_database.add_blob(APP, digest(1), 1, 0.0)])):
        with pytest.raises(StoreError, match="0 bytes"):
            use()
    assert file.stat().st_size == 0
    assert Path(f"{file}-wal").read_bytes() == b"what may be left of it"


def test_another_program_s_database_is_named_as_one(tmp_path: Path) -> None:
    file = tmp_path / DATABASE_FILE
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE blob (x)")
    with pytest.raises(StoreError, match="another program's database"):
        PushedDatabase(file).read()


def test_a_journal_that_a_broken_off_start_has_left_changes_nothing(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / f"{DATABASE_FILE}.new", isolation_level=None)) as left:
        left.executescript("CREATE TABLE other (x); BEGIN; INSERT INTO other VALUES (1);")
        journal = tmp_path / f"{DATABASE_FILE}.new-journal"
        data = journal.read_bytes()
    assert data
    journal.write_bytes(data)
    book = PushedDatabase(tmp_path / DATABASE_FILE)
    book.write([pushed_database.add_blob(APP, digest(1), 1, 0.0)])
    book.close()
    assert [path.name for path in tmp_path.iterdir()] == [DATABASE_FILE]


def test_a_list_that_cannot_be_made_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_SCHEMA", "CREATE")
    with pytest.raises(StoreError):
        PushedDatabase(tmp_path / DATABASE_FILE).write([])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_only_this_user_may_read_it_in_whichever_directory(tmp_path: Path, umask: int) -> None:
    tmp_path.chmod(0o755)
    before = os.umask(umask)
    try:
        book = PushedDatabase(tmp_path / DATABASE_FILE)
        book.write([pushed_database.add_blob(APP, digest(1), 1, 0.0)])
        modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
        assert modes == dict.fromkeys([DATABASE_FILE, f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-shm"], "0o600")
        book.close()
        # As an older k3dreg has left it.
        (tmp_path / DATABASE_FILE).chmod(0o644)
        book = PushedDatabase(tmp_path / DATABASE_FILE)
        assert len(book.read()) == 1
        assert (tmp_path / DATABASE_FILE).stat().st_mode & 0o777 == 0o600
        book.close()
    finally:
        os.umask(before)


def test_annotations_are_read_from_the_disk_as_many_as_are_wanted(tmp_path: Path) -> None:
    book = PushedDatabase(tmp_path / DATABASE_FILE)
    wide = [
        evolve(manifest(n, subject=9), descriptor=evolve(manifest(n).descriptor, annotations={"a": "x" * 1000}))
        for n in range(4)
    ]
    book.write([pushed_database.add_manifest(APP, each) for each in wide])
    assert all(row.manifest is not None and not row.manifest.descriptor.annotations for row in book.read())
    digests = [each.digest for each in wide]
    found = book.descriptors(APP, [digest(7), *digests], 2500)
    assert list(found) == digests[:2]
    assert json.loads(found[digests[0]]) == wide[0].descriptor.to_json()
    assert list(book.descriptors(APP, digests, 1)) == digests[:1]
    assert book.descriptors(OTHER, digests, 1) == {}
    book.close()


@pytest.mark.parametrize("column", ["digest = 'none'", "descriptor = '{'", "path = 'No'", "subject = 'md5:1'"])
def test_a_list_with_what_k3dreg_never_wrote_is_an_error(tmp_path: Path, column: str) -> None:
    file = tmp_path / DATABASE_FILE
    book = PushedDatabase(file)
    book.write([pushed_database.add_manifest(APP, manifest(1)), pushed_database.add_tag(APP, "t", digest(1))])
    table = "tag" if column.startswith("digest") else "manifest"
    book.write([(f"UPDATE {table} SET {column}", ())])
    with pytest.raises(StoreError, match="did not write"):
        book.read()
    book.close()


NEVER_PUSHED = """
import sys
from pathlib import Path
import k3dreg.cli, k3dreg.daemon.service
from k3dreg.store.pushed_database import PushedDatabase
assert PushedDatabase(Path(sys.argv[1])).read() == []
assert "sqlite3" not in sys.modules, "SQLite was loaded"
"""


def test_where_nothing_was_ever_pushed_there_is_no_file_and_no_sqlite(tmp_path: Path) -> None:
    file = tmp_path / DATABASE_FILE
    subprocess.run([sys.executable, "-c", NEVER_PUSHED, str(file)], check=True, env=ENVIRONMENT)
    assert list(tmp_path.iterdir()) == []


def test_a_list_that_is_closed_is_not_made_again(tmp_path: Path) -> None:
    file = tmp_path / DATABASE_FILE
    book = PushedDatabase(file)
    book.close()
    with pytest.raises(StoreError):
        book.write([pushed_database.add_blob(APP, digest(1), 1, 0.0)])
    assert not file.exists()


def test_a_list_that_cannot_be_made_is_an_error_of_what_is_written(tmp_path: Path) -> None:
    book = PushedDatabase(tmp_path / "none" / DATABASE_FILE)
    assert book.read() == []
    with pytest.raises(StoreError):
        book.write([pushed_database.add_blob(APP, digest(1), 1, 0.0)])
    (tmp_path / "none").mkdir()
    book.write([pushed_database.add_blob(APP, digest(1), 1, 0.0)])
    assert len(book.read()) == 1
    book.close()


WRITER = """
import sys
from collections.abc import Sequence
from pathlib import Path
from tests.unit.store.test_pushed import APP, digest, manifest
from k3dreg.store import pushed_database
book = pushed_database.PushedDatabase(Path(sys.argv[1]))
for n in range(1, 100000):
    tag = pushed_database.add_tag(APP, "t", digest(n))
    book.write([pushed_database.add_blob(APP, digest(n), 1, 0.0), pushed_database.add_manifest(APP, manifest(n)), tag])
    print(n, flush=True)
"""


def test_what_was_acknowledged_before_a_kill_is_there_and_a_change_is_there_whole(tmp_path: Path) -> None:
    for round_ in range(5):
        file = tmp_path / f"{round_}.db"
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file)],
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        assert process.stdout is not None
        acknowledged = 0
        for _ in range(20 + 13 * round_):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        book = PushedDatabase(file)
        rows = book.read()
        book.close()
        blobs = {row.blob for row in rows if row.blob}
        manifests = {row.manifest.digest for row in rows if row.manifest}
        (tag,) = [row.tag for row in rows if row.tag]
        assert {digest(n) for n in range(1, acknowledged + 1)} <= blobs
        assert blobs == manifests
        assert tag[1] in manifests
        assert tag[1] == digest(len(manifests))


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


TestLikeAModel = LikeAModel.TestCase
TestLikeAModel.settings = settings(max_examples=25, stateful_step_count=15)
