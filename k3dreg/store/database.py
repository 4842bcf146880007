"""An SQLite database of what was pushed.

When `transact` returns, the transaction survives a power failure (`synchronous=FULL`).  If the process or the machine
dies earlier, either all of it or nothing is in the database.  Everything here blocks: call it in worker threads, one
call at a time.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from k3dreg.oci.errors import StoreError, StoreFull
from k3dreg.store.durable_files import storage_errors, sync_directory

T = TypeVar("T")

# 2: manifests have the time at which they were pushed.  3: blobs have their size in bytes, 0 where it is not known.
_VERSION = 3
_SCHEMA = """
CREATE TABLE blob (registry TEXT, path TEXT, digest TEXT, since REAL, size INTEGER DEFAULT 0,
                   PRIMARY KEY (registry, path, digest)) WITHOUT ROWID;
CREATE TABLE manifest (registry TEXT, path TEXT, digest TEXT, descriptor TEXT, parts TEXT, subject TEXT,
                       since REAL DEFAULT 0,
                       PRIMARY KEY (registry, path, digest)) WITHOUT ROWID;
CREATE TABLE tag (registry TEXT, path TEXT, name TEXT, digest TEXT, PRIMARY KEY (registry, path, name)) WITHOUT ROWID;
"""

# Statements that upgrade from a version to the next.
_UPGRADES = {
    1: "ALTER TABLE manifest ADD COLUMN since REAL DEFAULT 0;",
    2: "ALTER TABLE blob ADD COLUMN size INTEGER DEFAULT 0;",
}

# The second error also means a full disk: there was no room for the log's index (`-shm`) on opening the database.
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)

# The values of a row's columns.
Values = tuple[Any, ...]


class Database:
    """A connection to the database.  The caller closes it."""

    def __init__(self, file: Path, *, read_only: bool = False) -> None:
        """Open the database.  Unless `read_only`, create it if it does not exist.  Raises `StoreError`."""
        with _database_errors("opening the list of what was pushed"):
            with storage_errors("opening the list of what was pushed"):
                _prepare(file, read_only=read_only)
            uri = file.absolute().as_uri() + ("?mode=ro" if read_only else "")
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
            try:
                if not read_only:
                    self._use_log()
                    self._db.execute("PRAGMA synchronous=FULL")
                    self._make()
            except BaseException:
                self._db.close()
                raise

    def _use_log(self) -> None:
        """Switch to a write-ahead log.

        A full disk has no room for the log's index.  With exclusive locking SQLite keeps that index in memory
        (sqlite.org/wal.html, section 8), but then no other process can read the database.
        """
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._version()
        except sqlite3.Error as error:
            if not _is_no_room(error):
                raise
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")

    def reuse_log(self) -> None:
        """Move the log's content into the database, so that the next transaction overwrites the log.

        That transaction then needs no more room on the disk than the log already has.  Raises `StoreFull` or
        `StoreError`.
        """
        with _database_errors("writing the list of what was pushed"):
            self._db.execute("PRAGMA wal_checkpoint(RESTART)")

    def _make(self) -> None:
        version = self._version()
        if version > _VERSION:
            raise StoreError("the state directory was used by a newer k3dreg")
        if version < min(_UPGRADES):
            raise StoreError("the list of what was pushed is another program's database: move it away")
        if version < _VERSION:
            steps = " ".join(_UPGRADES[step] for step in range(version, _VERSION))
            self._db.executescript(f"BEGIN; {steps} PRAGMA user_version={_VERSION}; COMMIT;")

    def _version(self) -> int:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        return int(version)

    def read(
        self, blob: Callable[..., T], manifest: Callable[..., T], tag: Callable[..., T]
    ) -> tuple[list[T], list[T], list[T]]:
        """Return all blobs, manifests and tags, each made by calling its function with the columns of a row.

        Raises `StoreError`, and what the functions raise.
        """
        with _database_errors("reading the list of what was pushed"):
            # A file that is opened read-only is not upgraded.
            version = self._version()
            since, size = "since" if version > 1 else "0", "size" if version > 2 else "0"
            manifests = f"SELECT registry, path, descriptor, parts, subject, {since} FROM manifest"  # noqa: S608
            blobs = f"SELECT registry, path, digest, since, {size} FROM blob"  # noqa: S608
            return (
                [blob(*row) for row in self._db.execute(blobs)],
                [manifest(*row) for row in self._db.execute(manifests)],
                [tag(*row) for row in self._db.execute("SELECT registry, path, name, digest FROM tag")],
            )

    def descriptors(self, registry: str, path: str, digests: Sequence[str], limit: int) -> dict[str, str]:
        """Return the descriptors of a repository's manifests as JSON, in the order of `digests`.

        Stops before the descriptor that would exceed `limit` characters in total, but returns at least one.  Digests
        that are not in the table are left out.  Raises `StoreError`.
        """
        found: dict[str, str] = {}
        size = 0
        with _database_errors("reading the list of what was pushed"):
            for digest in digests:
                query = "SELECT descriptor FROM manifest WHERE registry=? AND path=? AND digest=?"
                row = self._db.execute(query, (registry, path, digest)).fetchone()
                if row is None:
                    continue
                size += len(row[0]) + 1
                if size > limit and found:
                    break
                found[digest] = row[0]
        return found

    def transact(self, statements: Iterable[tuple[str, Values]]) -> None:
        """Execute the statements in one transaction.  Raises `StoreFull` or `StoreError`; then nothing has changed."""
        with _database_errors("writing the list of what was pushed"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for sql, parameters in statements:
                    self._db.execute(sql, parameters)
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connection.  Safe any number of times."""
        self._db.close()


def _is_no_room(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) in _NO_ROOM


def _prepare(file: Path, *, read_only: bool) -> None:
    """Create the file if it does not exist, and make sure that only this user may read it.

    A new file gets its name only when it is complete.  Raises `OSError`, and `StoreError` for an empty file: SQLite
    would take it for a new database, so all pushed content would become cached content, which may be evicted.
    """
    try:
        found = file.stat()
    except FileNotFoundError:
        if read_only:
            raise
        new = file.with_name(f"{file.name}.new")
        # Created here with its mode, because SQLite would make it readable for all users; SQLite's other files get the
        # same mode.  SQLite removes a journal left by an interrupted start, because the file is empty.
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        try:
            with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as made:
                made.executescript(f"PRAGMA synchronous=FULL; BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
        except sqlite3.Error:
            new.unlink()
            raise
        new.rename(file)
        sync_directory(file.parent)
        return
    if found.st_size == 0:
        raise StoreError(
            f"the list of what was pushed, {file.name} in the state directory, has 0 bytes, so it is damaged: put it "
            "back from a backup, or remove it and push again what was pushed"
        )
    if not read_only:
        for each in (file, *(file.with_name(file.name + suffix) for suffix in ("-wal", "-shm"))):
            with contextlib.suppress(FileNotFoundError):
                if each.stat().st_mode & 0o077:
                    each.chmod(0o600)


@contextlib.contextmanager
def _database_errors(what: str) -> Iterator[None]:
    """Raise `sqlite3.Error` as `StoreFull` or `StoreError`.  Clients may see SQLite's text: it contains no path."""
    try:
        yield
    except sqlite3.Error as error:
        if _is_no_room(error):
            raise StoreFull(
                f"no room is left on the disk of the state directory: {what} failed",
                advice="free some space there, or give k3dreg a smaller --cache-size",
            ) from error
        raise StoreError(f"the state directory could not be used: {what} failed ({error})") from error
