"""What was pushed, as rows of the database, and the statements that change it.

Everything here that reads blocks: call it in worker threads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from attrs import evolve, frozen

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import InvalidDigest, InvalidManifest, InvalidName, StoreError
from k3dreg.oci.media_types import LONGEST_TYPE
from k3dreg.oci.reference import Repository
from k3dreg.store.database import Statement, Tables, Values
from k3dreg.store.interfaces import PushedManifest

# 2: manifests have the time at which they were pushed.  3: blobs have their size in bytes, 0 where it is not known.
PUSHED_TABLES = Tables(
    "pushed",
    3,
    (
        """CREATE TABLE blob (registry TEXT, path TEXT, digest TEXT, since REAL, size INTEGER DEFAULT 0,
                               PRIMARY KEY (registry, path, digest)) WITHOUT ROWID""",
        """CREATE TABLE manifest (registry TEXT, path TEXT, digest TEXT, descriptor TEXT, parts TEXT, subject TEXT,
                                   since REAL DEFAULT 0, PRIMARY KEY (registry, path, digest)) WITHOUT ROWID""",
        """CREATE TABLE tag (registry TEXT, path TEXT, name TEXT, digest TEXT,
                              PRIMARY KEY (registry, path, name)) WITHOUT ROWID""",
    ),
    {
        1: ("ALTER TABLE manifest ADD COLUMN since REAL DEFAULT 0",),
        2: ("ALTER TABLE blob ADD COLUMN size INTEGER DEFAULT 0",),
    },
)


class _Rows(Protocol):
    def row(self, sql: str, parameters: Values = ()) -> Values | None: ...

    def rows(self, sql: str, parameters: Values = ()) -> list[Values]: ...


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


def read_pushed(database: _Rows) -> list[PushedRow]:
    """Return all rows, manifests without their annotations.  Raises `StoreError`."""
    try:
        return [
            *(_blob(*row) for row in database.rows("SELECT registry, path, digest, since, size FROM blob")),
            *(
                _manifest(*row)
                for row in database.rows("SELECT registry, path, descriptor, parts, subject, since FROM manifest")
            ),
            *(_tag(*row) for row in database.rows("SELECT registry, path, name, digest FROM tag")),
        ]
    except (ValueError, TypeError, InvalidDigest, InvalidName, InvalidManifest) as error:
        raise StoreError("the database has entries that k3dreg did not write") from error


def read_descriptors(
    database: _Rows, repository: Repository, digests: Sequence[Digest], limit: int
) -> dict[Digest, bytes]:
    """Return the descriptors of a repository's manifests as JSON, with their annotations, in the order of `digests`.

    Stops before the descriptor that would exceed `limit` bytes in total, but returns at least one.  Unknown digests are
    left out.  Raises `StoreError`.
    """
    found: dict[Digest, bytes] = {}
    size = 0
    for digest in digests:
        query = "SELECT descriptor FROM manifest WHERE registry=? AND path=? AND digest=?"
        row = database.row(query, (*_key(repository), str(digest)))
        if row is None:
            continue
        size += len(row[0]) + 1
        if size > limit and found:
            break
        found[digest] = row[0].encode("utf-8")
    return found


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
