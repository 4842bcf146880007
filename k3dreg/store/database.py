"""The SQLite database in the state directory: what was pushed, and tables of other modules.

A module describes its tables by a `Tables`.  Opening the database creates or upgrades the tables of all modules.
Everything here but `Database.row` blocks: call it in worker threads.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attrs import frozen

from k3dreg.oci.errors import StoreError, StoreFull
from k3dreg.store.disk_reserve import Reserve
from k3dreg.store.durable_files import storage_errors, sync_directory

# The name of the database in the state directory.
DATABASE_FILE = "pushed.db"

# The version of the file.  In versions 1 to 3 it was that of the tables of pushed content, the only ones.  Since 4 the
# version of each module's tables is in the table `tables`.
_VERSION = 4
_VERSIONS = "CREATE TABLE tables (name TEXT PRIMARY KEY, version INTEGER) WITHOUT ROWID"
_FIRST_TABLES = "pushed"
_NEWER = "the state directory was used by a newer k3dreg"

# The second error also means a full disk: there was no room for the log's index (`-shm`) on opening the database.
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)

# The values of a row's columns, or of a statement's parameters.
Values = tuple[Any, ...]
# An SQL statement and its parameters.
Statement = tuple[str, Values]


@frozen
class Tables:
    """The tables of one module.

    The database records their `version` by `name`.  `create`: statements that make them.  `upgrades`: by version, the
    statements that upgrade from it to the next.  For a cache they may drop the tables and make them anew.
    """

    name: str
    version: int
    create: Sequence[str]
    upgrades: Mapping[int, Sequence[str]] = MappingProxyType({})


class DatabaseConnection:
    """A connection to a database.  Thread-safe: its methods wait for each other."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """`connection` must be in autocommit mode and usable in all threads."""
        self._connection = connection
        self._lock = threading.Lock()

    def row(self, sql: str, parameters: Values = ()) -> Values | None:
        """Return the first row that a query finds, or None.  Raises `StoreError`."""
        found = self.rows(sql, parameters)
        return found[0] if found else None

    def rows(self, sql: str, parameters: Values = (), *, until: Callable[[Values], bool] | None = None) -> list[Values]:
        """Return all rows that a query finds, or those before the first for which `until` returns true.

        Raises `StoreError`.
        """
        with (
            self._lock,
            _database_errors("reading the database"),
            contextlib.closing(self._connection.execute(sql, parameters)) as cursor,
        ):
            if until is None:
                return cursor.fetchall()
            return list(itertools.takewhile(lambda row: not until(row), cursor))

    def transact(self, statements: Iterable[Statement], *, removing: bool = False) -> list[int]:
        """Execute statements in one transaction, and return how many rows each of them has changed.

        `removing` means nothing here: only a `Database` has a reserve.  Raises `StoreFull` or `StoreError`; then
        nothing has changed.
        """
        with self._lock, _database_errors("writing the database"), _transaction(self._connection):
            return [self._connection.execute(sql, parameters).rowcount for sql, parameters in statements]

    def reuse_log(self) -> None:
        """Move the log's content into the database, so that the next transaction overwrites the log.

        That transaction then needs no more room on the disk than the log already has.  Raises `StoreFull` or
        `StoreError`.
        """
        with self._lock, _database_errors("writing the database"):
            self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def close(self) -> None:
        """Close the connection, after a call under way.  Safe any number of times."""
        with self._lock:
            self._connection.close()


class Database:
    """The database of a process that has locked the state directory.  The caller closes it.

    It has two connections.  One writes, and reads lists; the other reads single rows and never waits for the disk to
    write (sqlite.org/wal.html).  Either sees what was written before it is asked.

    When `transact` returns, the transaction survives a power failure (`synchronous=FULL`).  If the process or the
    machine dies earlier, either all of it or nothing is in the database.
    """

    def __init__(self, file: Path, tables: Sequence[Tables], reserve: Reserve | None = None) -> None:
        """Open the database; create it, and `tables` in it, where they do not exist.

        `reserve`: released to make room for a removal when the disk is full.  Raises `StoreFull` or `StoreError`.
        """
        self._reserve = reserve
        with contextlib.ExitStack() as opened, _database_errors("opening the database"):
            with storage_errors("opening the database"):
                _prepare(file, tables)
            writer = opened.enter_context(contextlib.closing(_connect(file)))
            is_current = _is_current(writer, tables)
            writer.execute("PRAGMA journal_mode=WAL")
            writer.execute("PRAGMA synchronous=FULL")
            if not is_current:
                with _transaction(writer):
                    _upgrade(writer, tables)
            self._reader = DatabaseConnection(_connect(file, read_only=True))
            # SQLite opens the log at the first reading.  Later ones then need no descriptor: there may be none left.
            self._reader.row("SELECT 1 FROM sqlite_master")
            self._writer = DatabaseConnection(writer)
            opened.pop_all()

    def row(self, sql: str, parameters: Values = ()) -> Values | None:
        """Return the row that a query finds by an index, or None.  Raises `StoreError`.

        Call it in any thread, the reactor's too: it takes some ten microseconds, and waits for calls of itself only.
        """
        return self._reader.row(sql, parameters)

    def rows(self, sql: str, parameters: Values = (), *, until: Callable[[Values], bool] | None = None) -> list[Values]:
        """Return all rows that a query finds, or those before the first for which `until` returns true.

        It may wait for a transaction.  Raises `StoreError`.
        """
        return self._writer.rows(sql, parameters, until=until)

    def transact(self, statements: Sequence[Statement], *, removing: bool = False) -> list[int]:
        """Execute statements in one transaction, and return how many rows each of them has changed.

        `removing`: they remove content, so on a full disk the transaction is tried again, with the room of the reserve
        or else of the log.  Raises `StoreFull` or `StoreError`; then nothing has changed.
        """
        try:
            return self._writer.transact(statements)
        except StoreFull:
            if self._reserve is None or not removing:
                raise
        if not self._reserve.release():
            self._writer.reuse_log()
        try:
            return self._writer.transact(statements)
        finally:
            self._reserve.fill()

    def close(self) -> None:
        """Close both connections; other methods raise `StoreError` from now on.  Safe any number of times."""
        self._reader.close()
        self._writer.close()


def open_read_only(file: Path, tables: Sequence[Tables]) -> DatabaseConnection:
    """Open a database that another process may be using, with `tables` in their current versions.

    The caller closes it.  Of a file with older tables, a copy in memory is upgraded.  Raises `StoreError`.
    """
    return _open_beside(file, tables, read_only=True)


def open_beside(file: Path, tables: Sequence[Tables]) -> DatabaseConnection:
    """Open a database as `open_read_only` does, also for short transactions, for which another process waits.

    Of a file with older tables, what is written is lost.  The caller closes it.  Raises `StoreError`.
    """
    return _open_beside(file, tables, read_only=False)


def _open_beside(file: Path, tables: Sequence[Tables], *, read_only: bool) -> DatabaseConnection:
    with contextlib.ExitStack() as opened, _database_errors("opening the database"):
        with storage_errors("opening the database"):
            _check_not_empty(file)
        found = opened.enter_context(contextlib.closing(_connect(file, read_only=read_only)))
        if _is_current(found, tables):
            opened.pop_all()
            return DatabaseConnection(found)
        return open_in_memory(tables, found)


def open_in_memory(tables: Sequence[Tables], original: sqlite3.Connection | None = None) -> DatabaseConnection:
    """Return a database in memory with `tables`, a copy of `original` if there is one.  The caller closes it."""
    with contextlib.ExitStack() as opened:
        made = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        opened.enter_context(contextlib.closing(made))
        if original is None:
            made.execute(_VERSIONS)
            made.execute(f"PRAGMA user_version={_VERSION}")
        else:
            original.backup(made)
        _upgrade(made, tables)
        opened.pop_all()
        return DatabaseConnection(made)


def open_copy(file: Path, tables: Sequence[Tables]) -> DatabaseConnection:
    """Return a copy in memory of a database that another process may be using, with `tables`.

    The caller closes it.  Raises `StoreError`.
    """
    with _database_errors("opening the database"):
        with storage_errors("opening the database"):
            _check_not_empty(file)
        with contextlib.closing(_connect(file, read_only=True)) as original:
            return open_in_memory(tables, original)


def _connect(file: Path, *, read_only: bool = False) -> sqlite3.Connection:
    uri = file.absolute().as_uri() + ("?mode=ro" if read_only else "")
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def _prepare(file: Path, tables: Sequence[Tables]) -> None:
    """Create the file if it does not exist, and make sure that only this user may read it.

    A new file gets its name only when it is complete.  Raises `OSError`, `sqlite3.Error` and `StoreError`.
    """
    try:
        _check_not_empty(file)
    except FileNotFoundError:
        new = file.with_name(f"{file.name}.new")
        # Created here with its mode, because SQLite would make it readable for all users; SQLite's other files get the
        # same mode.  SQLite removes a journal left by an interrupted start, because the file is empty.
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        try:
            with contextlib.closing(_connect(new)) as made:
                made.execute("PRAGMA synchronous=FULL")
                with _transaction(made):
                    made.execute(_VERSIONS)
                    made.execute(f"PRAGMA user_version={_VERSION}")
                    _upgrade(made, tables)
        except BaseException:
            new.unlink()
            raise
        new.rename(file)
        sync_directory(file.parent)
        return
    for each in (file, *(file.with_name(file.name + suffix) for suffix in ("-wal", "-shm"))):
        with contextlib.suppress(FileNotFoundError):
            if each.stat().st_mode & 0o077:
                each.chmod(0o600)


def _check_not_empty(file: Path) -> None:
    """Raise `StoreError` for an empty file, and `OSError` if there is none.

    SQLite would take an empty file for a new database, so all pushed content would become cached content, which may be
    evicted.
    """
    if file.stat().st_size == 0:
        raise StoreError(
            f"the database, {file.name} in the state directory, has 0 bytes, so it is damaged: put it back from a "
            "backup, or remove it and push again what was pushed"
        )


def _is_current(connection: sqlite3.Connection, tables: Sequence[Tables]) -> bool:
    """Return whether the database has `tables` in their versions.

    Raises `StoreError` for a database of a newer k3dreg, or of another program.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > _VERSION:
        raise StoreError(_NEWER)
    if version < 1:
        raise StoreError("the database in the state directory is another program's: move it away")
    return bool(version == _VERSION) and _versions(connection).items() >= {t.name: t.version for t in tables}.items()


def _upgrade(connection: sqlite3.Connection, tables: Sequence[Tables]) -> None:
    """Create or upgrade `tables`.  Raises `StoreError` for those of a newer k3dreg."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < _VERSION:
        connection.execute(_VERSIONS)
        connection.execute("INSERT INTO tables VALUES (?, ?)", (_FIRST_TABLES, version))
        connection.execute(f"PRAGMA user_version={_VERSION}")
    versions = _versions(connection)
    for each in tables:
        found = versions.get(each.name)
        if found is None:
            steps = [each.create]
        elif found <= each.version:
            steps = [each.upgrades[step] for step in range(found, each.version)]
        else:
            raise StoreError(_NEWER)
        for statement in (statement for step in steps for statement in step):
            connection.execute(statement)
        connection.execute("INSERT OR REPLACE INTO tables VALUES (?, ?)", (each.name, each.version))


def _versions(connection: sqlite3.Connection) -> dict[str, int]:
    return dict(connection.execute("SELECT name, version FROM tables").fetchall())


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the `with` block executes; after an exception, nothing has changed."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _database_errors(what: str) -> Iterator[None]:
    """Raise `sqlite3.Error` as `StoreFull` or `StoreError`.  Clients may see SQLite's text: it contains no path."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) in _NO_ROOM:
            raise StoreFull(
                f"no room is left on the disk of the state directory: {what} failed",
                advice="free some space there, or give k3dreg a smaller --cache-size",
            ) from error
        raise StoreError(f"the state directory could not be used: {what} failed ({error})") from error
