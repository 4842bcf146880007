"""The database: created, upgraded and shared by several modules' tables; written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from k3dreg.oci.errors import StoreError
from k3dreg.store.database import DATABASE_FILE, Database, Tables, open_beside, open_read_only

ONE = Tables("one", 1, ("CREATE TABLE one (x INTEGER PRIMARY KEY)",))
TWO = Tables("two", 1, ("CREATE TABLE two (y TEXT)", "INSERT INTO two VALUES ('first')"))
# The same tables in later versions.
WIDER = Tables(
    "two",
    3,
    ("CREATE TABLE two (y TEXT, z, w)",),
    {1: ("ALTER TABLE two ADD COLUMN z",), 2: ("ALTER TABLE two ADD COLUMN w",)},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / DATABASE_FILE


@contextlib.contextmanager
def opened(file: Path, *tables: Tables) -> Iterator[Database]:
    with contextlib.closing(Database(file, tables or (ONE,))) as database:
        yield database


def add(number: int) -> tuple[str, tuple[int]]:
    return ("INSERT INTO one VALUES (?)", (number,))


def test_a_row_is_read_as_soon_as_it_is_written_and_is_there_after_a_restart(file: Path) -> None:
    with opened(file) as database:
        assert database.row("SELECT x FROM one WHERE x=1") is None
        assert database.transact([add(1), add(2), ("DELETE FROM one WHERE x>5", ())]) == [1, 1, 0]
        assert database.row("SELECT x FROM one WHERE x=1") == (1,)
        assert database.rows("SELECT x FROM one") == [(1,), (2,)]
    with opened(file) as database:
        assert database.rows("SELECT x FROM one") == [(1,), (2,)]


def test_a_row_is_read_while_a_transaction_goes_on(file: Path) -> None:
    with opened(file) as database:
        database.transact([add(1)])
        begun, go_on = threading.Event(), threading.Event()

        def statements() -> Iterator[tuple[str, tuple[int]]]:
            yield add(2)
            begun.set()
            assert go_on.wait(10)

        writing = threading.Thread(target=lambda: database.transact(statements()))  # type: ignore[arg-type]
        writing.start()
        assert begun.wait(10)
        assert database.row("SELECT count(*) FROM one") == (1,)
        go_on.set()
        writing.join()
        assert database.row("SELECT count(*) FROM one") == (2,)


def test_of_a_transaction_that_fails_nothing_is_written(file: Path) -> None:
    with opened(file) as database:
        with pytest.raises(StoreError, match="UNIQUE"):
            database.transact([add(1), add(1)])
        assert database.rows("SELECT x FROM one") == []


def test_each_module_s_tables_are_made_and_upgraded_by_themselves(file: Path) -> None:
    with opened(file, ONE) as database:
        database.transact([add(1)])
    with opened(file, ONE, TWO) as database:
        assert database.rows("SELECT x, y FROM one, two") == [(1, "first")]
    with opened(file, WIDER) as database:
        assert database.rows("SELECT y, z, w FROM two") == [("first", None, None)]
    with opened(file, ONE, WIDER) as database:
        assert database.rows("SELECT x, w FROM one, two") == [(1, None)]
        assert database.rows("SELECT name, version FROM tables") == [("one", 1), ("two", 3)]


def test_an_upgrade_that_fails_changes_nothing(file: Path) -> None:
    with opened(file, ONE, TWO):
        pass
    broken = evolve(WIDER, upgrades={**WIDER.upgrades, 2: ("ALTER TABLE none ADD COLUMN w",)})
    with pytest.raises(StoreError, match="no such table"):
        Database(file, (broken,))
    with opened(file, ONE, TWO) as database:
        assert database.rows("SELECT * FROM two") == [("first",)]


def test_tables_of_a_newer_k3dreg_are_an_error(file: Path) -> None:
    with opened(file, ONE, WIDER):
        pass
    for use in (Database, open_read_only):
        with pytest.raises(StoreError, match="newer"):
            use(file, (ONE, TWO))
    with contextlib.closing(sqlite3.connect(file)) as newer:
        newer.execute("PRAGMA user_version=99")
    for use in (Database, open_read_only):
        with pytest.raises(StoreError, match="newer"):
            use(file, (ONE,))


def test_another_process_reads_it_meanwhile(file: Path) -> None:
    with opened(file) as database:
        database.transact([add(1)])
        with contextlib.closing(open_read_only(file, (ONE,))) as reader:
            assert reader.row("SELECT x FROM one") == (1,)
            database.transact([add(2)])
            assert reader.rows("SELECT x FROM one") == [(1,), (2,)]
            with pytest.raises(StoreError, match="readonly"):
                reader.transact([add(3)])


def test_another_process_writes_it_meanwhile(file: Path) -> None:
    with opened(file) as database:
        database.transact([add(1)])
        with contextlib.closing(open_beside(file, (ONE,))) as other:
            other.transact([add(2)])
            database.transact([add(3)])
            assert other.rows("SELECT x FROM one") == database.rows("SELECT x FROM one") == [(1,), (2,), (3,)]


def test_of_an_older_file_a_reader_upgrades_its_own_copy(file: Path) -> None:
    with opened(file, ONE, TWO):
        pass
    before = file.read_bytes()
    with contextlib.closing(open_read_only(file, (ONE, WIDER))) as reader:
        assert reader.rows("SELECT y, w FROM two") == [("first", None)]
    assert file.read_bytes() == before


def test_a_file_that_is_no_database_is_an_error_and_is_left_alone(file: Path) -> None:
    content = b"not a database at all, but long enough to be looked at" * 20
    file.write_bytes(content)
    for use in (Database, open_read_only):
        with pytest.raises(StoreError):
            use(file, (ONE,))
    assert file.read_bytes() == content


def test_an_empty_file_is_damage_and_not_a_database_without_rows(file: Path) -> None:
    file.touch()
    Path(f"{file}-wal").write_bytes(b"what may be left of it")
    for use in (Database, open_read_only):
        with pytest.raises(StoreError, match="0 bytes"):
            use(file, (ONE,))
    assert file.stat().st_size == 0
    assert Path(f"{file}-wal").read_bytes() == b"what may be left of it"


def test_another_program_s_database_is_named_as_one_and_is_left_alone(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE blob (x)")
    content = file.read_bytes()
    for use in (Database, open_read_only):
        with pytest.raises(StoreError, match="another program's"):
            use(file, (ONE,))
    assert file.read_bytes() == content


def test_a_journal_that_an_interrupted_start_has_left_changes_nothing(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(f"{file}.new", isolation_level=None)) as left:
        left.executescript("CREATE TABLE other (x); BEGIN; INSERT INTO other VALUES (1);")
        journal = Path(f"{file}.new-journal")
        data = journal.read_bytes()
    assert data
    journal.write_bytes(data)
    with opened(file) as database:
        assert database.rows("SELECT name FROM sqlite_schema WHERE type='table'") == [("tables",), ("one",)]
    assert list(file.parent.iterdir()) == [file]


def test_a_database_that_cannot_be_made_leaves_no_file(file: Path) -> None:
    with pytest.raises(StoreError):
        Database(file, (Tables("wrong", 1, ("CREATE",)),))
    assert list(file.parent.iterdir()) == []
    with pytest.raises(StoreError):
        Database(file.parent / "none" / "x.db", (ONE,))


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_only_this_user_may_read_it_in_whichever_directory(file: Path, umask: int) -> None:
    file.parent.chmod(0o755)
    before = os.umask(umask)
    try:
        with opened(file) as database:
            database.transact([add(1)])
            modes = {path.name: oct(path.stat().st_mode & 0o777) for path in file.parent.iterdir()}
            assert modes == dict.fromkeys([DATABASE_FILE, f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-shm"], "0o600")
        file.chmod(0o644)
        with opened(file):
            assert file.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_a_closed_database_is_an_error(file: Path) -> None:
    database = Database(file, (ONE,))
    database.close()
    database.close()
    for use in (lambda: database.row("SELECT 1"), lambda: database.rows("SELECT 1"), lambda: database.transact([])):
        with pytest.raises(StoreError):
            use()


WRITER = """
import sys
from pathlib import Path
from tests.unit.store.test_database import Database, ONE, TWO, add
database = Database(Path(sys.argv[1]), (ONE, TWO))
for n in range(1, 100000):
    more = ("INSERT INTO two VALUES (?)", (str(n),))
    database.transact([add(n), more, ("UPDATE two SET y='0' WHERE y='first'", ())])
    print(n, flush=True)
"""


def test_what_was_acknowledged_before_a_kill_is_there_and_a_transaction_is_there_whole(tmp_path: Path) -> None:
    for round_ in range(5):
        file = tmp_path / f"{round_}.db"
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert process.stdout is not None
        acknowledged = 0
        for _ in range(20 + 13 * round_):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with opened(file, ONE, TWO) as database:
            numbers = [number for (number,) in database.rows("SELECT x FROM one ORDER BY x")]
            texts = {int(text) for (text,) in database.rows("SELECT y FROM two")}
        assert len(numbers) >= acknowledged
        assert numbers == list(range(1, len(numbers) + 1))
        assert texts == {0, *numbers}
