"""What was pushed, in a database that is read once at the start and then written.

Everything here blocks: call it in worker threads.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import InvalidDigest, InvalidManifest, InvalidName, StoreError, StoreFull
from k3dreg.oci.media_types import LONGEST_TYPE
from k3dreg.oci.reference import Repository
from k3dreg.store.disk_reserve import Reserve
from k3dreg.store.interfaces import PushedManifest

if TYPE_CHECKING:
    from k3dreg.store.database import Database

# One SQL statement and its parameters.
Statement = tuple[str, tuple[object, ...]]


@frozen
class PushedRow:
    """A row of the database: exactly one of `blob`, `manifest` and `tag` is set.

    `since` and `size` belong to a blob: the time of its push in seconds since the epoch, and its bytes, 0 if unknown.
    """

    repository: Repository
    since: float = 0.0
    size: int = 0
    blob: Digest | None = None
    manifest: PushedManifest | None = None
    tag: tuple[str, Digest] | None = None


class PushedDatabase:
    """The database of what was pushed, created by the first `write`.  The caller closes it.

    Thread-safe: its methods wait for each other.  SQLite takes 1.5 MiB of memory and is imported only when there is a
    database, because most users never push.
    """

    def __init__(self, file: Path, reserve: Reserve | None = None, *, read_only: bool = False) -> None:
        """`reserve`: released to make room for a removal when the disk is full."""
        self._file = file
        self._reserve = reserve
        self._read_only = read_only
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._closed = False

    def read(self) -> list[PushedRow]:
        """Return all rows, manifests without their annotations; none if there is no file.  Raises `StoreError`."""
        with self._lock:
            try:
                self._file.stat()
            except FileNotFoundError:
                return []
            except OSError:
                pass  # opening it below raises an error with a better message
            database = self._open()
            try:
                blobs, manifests, tags = database.read(_blob, _manifest, _tag)
            except (ValueError, TypeError, InvalidDigest, InvalidName, InvalidManifest) as error:
                raise StoreError("the list of what was pushed has entries that k3dreg did not write") from error
            return [*blobs, *manifests, *tags]

    def descriptors(self, repository: Repository, digests: Sequence[Digest], limit: int) -> dict[Digest, bytes]:
        """Return the descriptors of manifests as JSON, with their annotations.  See `Database.descriptors`."""
        with self._lock:
            found = self._open().descriptors(*_key(repository), list(map(str, digests)), limit)
        return {Digest.parse(digest): text.encode("utf-8") for digest, text in found.items()}

    def write(self, statements: Sequence[Statement], *, removing: bool = False) -> None:
        """Execute the statements in one transaction.  Raises `StoreFull` or `StoreError`; then nothing has changed.

        `removing`: they remove content, so on a full disk the transaction is tried again, with the room of the reserve
        or else of the log.
        """
        with self._lock:
            database = self._open()
            try:
                database.transact(statements)
            except StoreFull:
                if self._reserve is None or not removing:
                    raise
                if not self._reserve.release():
                    database.reuse_log()
                try:
                    database.transact(statements)
                finally:
                    self._reserve.fill()

    def close(self) -> None:
        """Close the database; later calls raise `StoreError`.  Safe any number of times."""
        with self._lock:
            self._closed = True
            if self._database is not None:
                self._database.close()

    def _open(self) -> Database:
        if self._closed:
            raise StoreError("the list of what was pushed is closed")
        if self._database is None:
            from k3dreg.store.database import Database

            self._database = Database(self._file, read_only=self._read_only)
        return self._database


def add_blob(repository: Repository, digest: Digest, size: int, since: float) -> Statement:
    return ("INSERT OR REPLACE INTO blob VALUES (?, ?, ?, ?, ?)", (*_key(repository), str(digest), since, size))


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
    """Return the statements that remove a manifest and the tags that name it."""
    return [
        ("DELETE FROM tag WHERE registry=? AND path=? AND digest=?", (*_key(repository), str(digest))),
        ("DELETE FROM manifest WHERE registry=? AND path=? AND digest=?", (*_key(repository), str(digest))),
    ]


def add_tag(repository: Repository, name: str, digest: Digest) -> Statement:
    return ("INSERT OR REPLACE INTO tag VALUES (?, ?, ?, ?)", (*_key(repository), name, str(digest)))


def remove_tag(repository: Repository, name: str) -> Statement:
    return ("DELETE FROM tag WHERE registry=? AND path=? AND name=?", (*_key(repository), name))


def without_annotations(descriptor: Descriptor) -> Descriptor:
    """Return the part of a descriptor that is kept in memory, without annotations, which may be megabytes.

    An artifact type that is longer than a media type may be (RFC 6838, 4.2: two names of 127 characters) is left out,
    too.
    """
    artifact_type = descriptor.artifact_type if len(descriptor.artifact_type) <= LONGEST_TYPE else ""
    return evolve(descriptor, annotations={}, artifact_type=artifact_type)


def _key(repository: Repository) -> tuple[str, str]:
    return (repository.registry or "", repository.path)


def _repository(registry: str, path: str) -> Repository:
    return Repository.parse(path, registry or None)


def _blob(registry: str, path: str, digest: str, since: float, size: int) -> PushedRow:
    return PushedRow(_repository(registry, path), since, int(size), blob=Digest.parse(digest))


def _manifest(registry: str, path: str, descriptor: str, parts: str, subject: str | None, since: float) -> PushedRow:
    manifest = PushedManifest(
        without_annotations(Descriptor.from_json(json.loads(descriptor))),
        frozenset(map(Digest.parse, json.loads(parts))),
        None if subject is None else Digest.parse(subject),
        float(since),
    )
    return PushedRow(_repository(registry, path), manifest=manifest)


def _tag(registry: str, path: str, name: str, digest: str) -> PushedRow:
    return PushedRow(_repository(registry, path), tag=(name, Digest.parse(digest)))
