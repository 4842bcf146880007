"""What was pushed, in a file: an SQLite database that is read once and then only written.

A transaction is on disk for good when it returns (`synchronous=FULL`), whole or not at all, whenever the process or
the machine dies.  All of it blocks: for worker threads.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from attrs import frozen

from k3dreg.interfaces import PushedManifest
from k3dreg.model.descriptor import Descriptor
from k3dreg.model.digest import Digest
from k3dreg.model.errors import InvalidDigest, InvalidManifest, InvalidName, StoreError, StoreFull
from k3dreg.model.reference import Repository
from k3dreg.store.reserve import Reserve

# 2: manifests have the time at which they were pushed.
_VERSION = 2
_SCHEMA = """
CREATE TABLE blob (registry TEXT, path TEXT, digest TEXT, since REAL,
                   PRIMARY KEY (registry, path, digest)) WITHOUT ROWID;
CREATE TABLE manifest (registry TEXT, path TEXT, digest TEXT, descriptor TEXT, parts TEXT, subject TEXT,
                       since REAL DEFAULT 0,
                       PRIMARY KEY (registry, path, digest)) WITHOUT ROWID;
CREATE TABLE tag (registry TEXT, path TEXT, name TEXT, digest TEXT, PRIMARY KEY (registry, path, name)) WITHOUT ROWID;
"""

_FROM_1 = "ALTER TABLE manifest ADD COLUMN since REAL DEFAULT 0;"

# The second is a full disk too: no room for the index of the log (`-shm`), when the database is opened.
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)

# One SQL statement and its parameters.
Statement = tuple[str, tuple[object, ...]]


@frozen
class Row:
    """One thing that was pushed: exactly one of the last three is set."""

    repository: Repository
    since: float = 0.0
    blob: Digest | None = None
    manifest: PushedManifest | None = None
    tag: tuple[str, Digest] | None = None


class Ledger:
    """The database.  Its methods take turns, whichever threads call them."""

    def __init__(self, file: Path, reserve: Reserve | None = None, *, read_only: bool = False) -> None:
        """Opens it, and makes it if there is none.  Raises `StoreError`.

        `reserve` is used up where something is removed and the disk is full.
        """
        self._reserve = reserve
        self._lock = threading.Lock()
        with _database_errors("opening the list of what was pushed"):
            uri = file.absolute().as_uri() + ("?mode=ro" if read_only else "")
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
            if not read_only:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._make()

    def _make(self) -> None:
        version = self._version()
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
        elif version == 1:
            self._db.executescript(f"BEGIN; {_FROM_1} PRAGMA user_version={_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise StoreError("the state directory was used by a newer k3dreg")

    def _version(self) -> int:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        return int(version)

    def read(self) -> list[Row]:
        """All of it.  Raises `StoreError`."""
        with self._lock, _database_errors("reading the list of what was pushed"):
            rows = [_blob(*row) for row in self._db.execute("SELECT registry, path, digest, since FROM blob")]
            # A file of the first version that is only read stays one.
            since = "since" if self._version() > 1 else "0"
            manifests = f"SELECT registry, path, descriptor, parts, subject, {since} FROM manifest"  # noqa: S608
            rows += [_manifest(*row) for row in self._db.execute(manifests)]
            rows += [_tag(*row) for row in self._db.execute("SELECT registry, path, name, digest FROM tag")]
            return rows

    def write(self, statements: Sequence[Statement], *, removing: bool = False) -> None:
        """One transaction.  Raises `StoreFull` or `StoreError`, and then nothing has changed.

        `removing`: it makes room, so it is to be possible on a full disk.
        """
        with self._lock:
            try:
                self._transact(statements)
            except StoreFull:
                if self._reserve is None or not removing or not self._reserve.release():
                    raise
                try:
                    self._transact(statements)
                finally:
                    self._reserve.fill()

    def _transact(self, statements: Iterable[Statement]) -> None:
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
        with self._lock:
            self._db.close()


def add_blob(repository: Repository, digest: Digest, since: float) -> Statement:
    return ("INSERT OR REPLACE INTO blob VALUES (?, ?, ?, ?)", (*_key(repository), str(digest), since))


def remove_blob(repository: Repository, digest: Digest) -> Statement:
    return ("DELETE FROM blob WHERE registry=? AND path=? AND digest=?", (*_key(repository), str(digest)))


def add_manifest(repository: Repository, manifest: PushedManifest) -> Statement:
    subject = None if manifest.subject is None else str(manifest.subject)
    descriptor = json.dumps(manifest.descriptor.to_json())
    parts = json.dumps(sorted(map(str, manifest.parts)))
    return (
        "INSERT OR REPLACE INTO manifest VALUES (?, ?, ?, ?, ?, ?, ?)",
        (*_key(repository), str(manifest.digest), descriptor, parts, subject, manifest.since),
    )


def remove_manifest(repository: Repository, digest: Digest) -> list[Statement]:
    """The manifest and its tags."""
    return [
        ("DELETE FROM tag WHERE registry=? AND path=? AND digest=?", (*_key(repository), str(digest))),
        ("DELETE FROM manifest WHERE registry=? AND path=? AND digest=?", (*_key(repository), str(digest))),
    ]


def add_tag(repository: Repository, name: str, digest: Digest) -> Statement:
    return ("INSERT OR REPLACE INTO tag VALUES (?, ?, ?, ?)", (*_key(repository), name, str(digest)))


def remove_tag(repository: Repository, name: str) -> Statement:
    return ("DELETE FROM tag WHERE registry=? AND path=? AND name=?", (*_key(repository), name))


def _key(repository: Repository) -> tuple[str, str]:
    return (repository.registry or "", repository.path)


def _repository(registry: str, path: str) -> Repository:
    return Repository.parse(path, registry or None)


def _blob(registry: str, path: str, digest: str, since: float) -> Row:
    return Row(_repository(registry, path), since, blob=Digest.parse(digest))


def _manifest(registry: str, path: str, descriptor: str, parts: str, subject: str | None, since: float) -> Row:
    manifest = PushedManifest(
        Descriptor.from_json(json.loads(descriptor)),
        frozenset(map(Digest.parse, json.loads(parts))),
        None if subject is None else Digest.parse(subject),
        float(since),
    )
    return Row(_repository(registry, path), manifest=manifest)


def _tag(registry: str, path: str, name: str, digest: str) -> Row:
    return Row(_repository(registry, path), tag=(name, Digest.parse(digest)))


@contextlib.contextmanager
def _database_errors(what: str) -> Iterator[None]:
    """The database's errors as ours.  A text of SQLite's has no path in it."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) in _NO_ROOM:
            raise StoreFull(
                f"no room is left on the disk of the state directory: {what} failed",
                advice="free some space there, or give k3dreg a smaller --cache-size",
            ) from error
        raise StoreError(f"the state directory could not be used: {what} failed ({error})") from error
    except (ValueError, TypeError, InvalidDigest, InvalidName, InvalidManifest) as error:
        raise StoreError(f"the state directory holds what k3dreg did not write: {what} failed") from error
