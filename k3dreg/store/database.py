"""An SQLite database of what was pushed.

A transaction is on disk for good when it returns (`synchronous=FULL`), whole or not at all, whenever the process or
the machine dies.  All of it blocks: for worker threads, one at a time.
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

# From a version to the next.
_UPGRADES = {
    1: "ALTER TABLE manifest ADD COLUMN since REAL DEFAULT 0;",
    2: "ALTER TABLE blob ADD COLUMN size INTEGER DEFAULT 0;",
}

# The second is a full disk too: no room for the index of the log (`-shm`), when the database is opened.
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)

# The columns of a table.
Values = tuple[Any, ...]


class Database:
    """One connection to it."""

    def __init__(self, file: Path, *, read_only: bool = False) -> None:
        """Opens it, and makes it if there is none.  Raises `StoreError`."""
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
        """Use a write-ahead log.

        On a full disk there is no room for the log's index.  With exclusive locking SQLite keeps that index in memory
        (sqlite.org/wal.html, section 8); no other process can read the list then.
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
        """Move what the log holds into the database, so that the next transaction overwrites the log.

        It then needs no room on the disk but what the log has.  Raises `StoreFull` or `StoreError`.
        """
        with _database_errors("writing the list of what was pushed"):
            self._db.execute("PRAGMA wal_checkpoint(RESTART)")

    def _make(self) -> None:
        version = self._version()
        if version > _VERSION or version < min(_UPGRADES):
            raise StoreError("the state directory was used by a newer k3dreg")
        if version < _VERSION:
            steps = " ".join(_UPGRADES[step] for step in range(version, _VERSION))
            self._db.executescript(f"BEGIN; {steps} PRAGMA user_version={_VERSION}; COMMIT;")

    def _version(self) -> int:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        return int(version)

    def read(
        self, blob: Callable[..., T], manifest: Callable[..., T], tag: Callable[..., T]
    ) -> tuple[list[T], list[T], list[T]]:
        """All blobs, manifests and tags, each made by its function of the columns, one row after the other.

        Raises `StoreError`, and what the functions raise.
        """
        with _database_errors("reading the list of what was pushed"):
            # A file of an earlier version that is only read stays one.
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
        """The descriptors of a repository's manifests as JSON, by digest, in order, of at most `limit` characters.

        The first is there whatever its size; what is not in the table is left out.  Raises `StoreError`.
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
        """One transaction.  Raises `StoreFull` or `StoreError`, and then nothing has changed."""
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
        """Safe any number of times."""
        self._db.close()


def _is_no_room(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) in _NO_ROOM


def _prepare(file: Path, *, read_only: bool) -> None:
    """Make the file whole, under another name first, if there is none; see that only this user may read it.

    Raises `OSError`, and `StoreError` for an empty file: SQLite would take it for a new one, and with it everything
    that was pushed would become cached content, which is evicted.
    """
    try:
        found = file.stat()
    except FileNotFoundError:
        if read_only:
            raise
        new = file.with_name(f"{file.name}.new")
        # Mode first: SQLite would make it readable to everybody, and its other files have the mode of this one.  Of a
        # start that was broken off there may be a journal, which SQLite removes because the file is empty.
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
    """The database's errors as ours.  A text of SQLite's has no path in it."""
    try:
        yield
    except sqlite3.Error as error:
        if _is_no_room(error):
            raise StoreFull(
                f"no room is left on the disk of the state directory: {what} failed",
                advice="free some space there, or give k3dreg a smaller --cache-size",
            ) from error
        raise StoreError(f"the state directory could not be used: {what} failed ({error})") from error
