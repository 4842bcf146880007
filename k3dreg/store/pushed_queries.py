"""Queries of pushed content.  The functions find lists and block: call them in worker threads."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import InvalidDigest, InvalidName, StoreError
from k3dreg.oci.reference import Reference, Repository, Tag
from k3dreg.store.database import Values
from k3dreg.store.interfaces import PushedImage, ReferrersPage
from k3dreg.store.pushed_tables import key_of

_MANIFEST = "SELECT digest, media_type, size FROM manifest WHERE registry=? AND path=? AND digest=?"
_TAGGED = """
    SELECT manifest.digest, media_type, size FROM tag JOIN manifest USING (registry, path, digest)
    WHERE tag.registry=? AND tag.path=? AND name=?"""
_HAS = """
    SELECT 1 FROM manifest WHERE registry=?1 AND path=?2 UNION ALL
    SELECT 1 FROM blob WHERE registry=?1 AND path=?2 LIMIT 1"""
_HAS_BLOB = "SELECT 1 FROM blob WHERE registry=? AND path=? AND digest=?"
_KEEPS = "SELECT 1 FROM blob WHERE digest=?1 UNION ALL SELECT 1 FROM manifest WHERE digest=?1 LIMIT 1"
_KEPT = "SELECT digest, size FROM blob UNION SELECT digest, size FROM manifest ORDER BY size"
# From each path the next one is looked up by the index, so that a page costs as much as the page.
_PATHS = """
    WITH RECURSIVE found (path) AS (
        SELECT ?1
        UNION ALL
        SELECT (SELECT min(path) FROM (
            SELECT min(path) AS path FROM manifest WHERE registry='' AND manifest.path > found.path UNION ALL
            SELECT min(path) FROM blob WHERE registry='' AND blob.path > found.path))
        FROM found WHERE found.path IS NOT NULL)
    SELECT path FROM found WHERE path IS NOT NULL LIMIT ?2 OFFSET 1"""
_TAGS = """
    SELECT name FROM tag
    WHERE registry=?1 AND path=?2 AND name COLLATE NOCASE >= ?3 AND (name COLLATE NOCASE, name) > (?3, ?3)
    ORDER BY name COLLATE NOCASE, name LIMIT ?4"""
_REFERRERS = """
    SELECT digest, descriptor FROM manifest INDEXED BY manifest_by_subject
    WHERE registry=?1 AND path=?2 AND subject=?3 AND digest>?4 AND (?5 IS NULL OR artifact_type=?5) ORDER BY digest"""
_TAGGED_IMAGES = """
    SELECT registry, path, name, digest, pushed, pulled FROM tag JOIN manifest USING (registry, path, digest)
    ORDER BY registry, path, name COLLATE NOCASE, name LIMIT ?"""
_UNTAGGED_IMAGES = """
    SELECT registry, path, NULL, digest, since, 0 FROM manifest WHERE NOT EXISTS (
        SELECT 1 FROM tag
        WHERE tag.registry=manifest.registry AND tag.path=manifest.path AND tag.digest=manifest.digest)"""
# A manifest and its parts, and the parts of an index's manifests.
_CONTENTS = """
    WITH RECURSIVE content (digest) AS (
        SELECT ?3
        UNION
        SELECT value FROM content CROSS JOIN manifest, json_each(parts)
        WHERE manifest.registry=?1 AND manifest.path=?2 AND manifest.digest=content.digest)
    SELECT digest FROM content"""
# The manifests of a repository to which tags lead (?3, a JSON list), and neither other tags nor other manifests.
_ONLY_REACHED_BY = """
    WITH RECURSIVE going (digest) AS (
        SELECT digest FROM tag WHERE registry=?1 AND path=?2 AND name IN (SELECT value FROM json_each(?3))
        UNION
        SELECT value FROM going CROSS JOIN manifest, json_each(parts)
        WHERE manifest.registry=?1 AND manifest.path=?2 AND manifest.digest=going.digest
        UNION
        SELECT manifest.digest FROM going CROSS JOIN manifest
        WHERE manifest.registry=?1 AND manifest.path=?2 AND subject=going.digest),
    staying (digest) AS (
        SELECT digest FROM tag WHERE registry=?1 AND path=?2 AND name NOT IN (SELECT value FROM json_each(?3))
        UNION
        SELECT digest FROM manifest WHERE registry=?1 AND path=?2 AND digest NOT IN (SELECT digest FROM going)
        UNION
        SELECT value FROM staying CROSS JOIN manifest, json_each(parts)
        WHERE manifest.registry=?1 AND manifest.path=?2 AND manifest.digest=staying.digest
        UNION
        SELECT manifest.digest FROM staying CROSS JOIN manifest
        WHERE manifest.registry=?1 AND manifest.path=?2 AND subject=staying.digest)
    SELECT digest FROM manifest WHERE registry=?1 AND path=?2
    AND digest IN (SELECT digest FROM going) AND digest NOT IN (SELECT digest FROM staying)"""
_UNREFERENCED = """
    SELECT registry, path, digest FROM blob WHERE since<=?
    EXCEPT SELECT registry, manifest.path, value FROM manifest, json_each(parts)"""
# Manifests that no tag leads to: not directly, nor by an index, nor by a subject.
_UNREACHED = """
    WITH RECURSIVE reached (registry, path, digest) AS (
        SELECT registry, path, digest FROM tag
        UNION
        SELECT manifest.registry, manifest.path, value FROM reached CROSS JOIN manifest, json_each(parts)
        WHERE (manifest.registry, manifest.path, manifest.digest)=(reached.registry, reached.path, reached.digest)
        UNION
        SELECT manifest.registry, manifest.path, manifest.digest FROM reached CROSS JOIN manifest
        WHERE (manifest.registry, manifest.path, subject)=(reached.registry, reached.path, reached.digest))
    SELECT registry, path, digest FROM manifest EXCEPT SELECT registry, path, digest FROM reached"""


class IRow(Protocol):
    """What finds a single row, in any thread: see `Database.row`."""

    def row(self, sql: str, parameters: Values = ()) -> Values | None: ...


class IRows(Protocol):
    """What finds lists of rows, in worker threads: see `Database.rows`."""

    def rows(
        self, sql: str, parameters: Values = (), *, until: Callable[[Values], bool] | None = None
    ) -> list[Values]: ...


class PushedReader:
    """Answers from single rows, each found by an index.  Implements `IPushedReader`."""

    def __init__(self, database: IRow) -> None:
        self._row = database.row

    def find(self, reference: Reference) -> Descriptor | None:
        """Return the media type, digest and size of the manifest that was pushed under `reference`, or None."""
        target = reference.target
        query, value = (_TAGGED, target.name) if isinstance(target, Tag) else (_MANIFEST, str(target))
        row = self._row(query, (*key_of(reference.repository), value))
        if row is None:
            return None
        with only_known_values():
            digest, media_type, size = row
            return Descriptor(str(media_type), Digest.parse(digest), int(size))

    def has(self, repository: Repository) -> bool:
        """Return whether the repository has a manifest or blob."""
        return self._row(_HAS, key_of(repository)) is not None

    def has_blob(self, repository: Repository, digest: Digest) -> bool:
        """Return whether the repository has the blob."""
        return self._row(_HAS_BLOB, (*key_of(repository), str(digest))) is not None

    def keeps(self, digest: Digest) -> bool:
        """Return whether any repository has the blob or manifest."""
        return self._row(_KEEPS, (str(digest),)) is not None

    def was_pushed(self, digest: Digest) -> bool:
        """Return whether any repository has the blob or manifest."""
        return self.keeps(digest)


def all_sizes(database: IRows) -> Mapping[Digest, int]:
    """Return all blobs and manifests, each with its size in bytes, 0 if unknown."""
    with only_known_values():
        return {Digest.parse(digest): int(size) for digest, size in database.rows(_KEPT)}


def own_paths(database: IRows, last: str | None, limit: int) -> list[str]:
    """Return the paths of this registry's own repositories in lexical order: at most `limit` after `last`."""
    return [path for (path,) in database.rows(_PATHS, (last or "", limit))]


def tags(database: IRows, repository: Repository, last: str | None, limit: int) -> list[str]:
    """Return the names of a repository's tags in lexical order: at most `limit` after `last`."""
    return [name for (name,) in database.rows(_TAGS, (*key_of(repository), last or "", limit))]


def referrers(
    database: IRows, repository: Repository, subject: Digest, artifact_type: str | None, last: str | None, room: int
) -> ReferrersPage:
    """Return a page of the manifests with this subject: see `IPushed.referrers`."""
    left, count = room, 0

    def is_full(row: Values) -> bool:
        nonlocal left, count
        left -= len(row[1]) + 1  # JSON in ASCII
        count += 1
        return left < 0 and count > 1

    parameters = (*key_of(repository), str(subject), last or "", artifact_type)
    found = database.rows(_REFERRERS, parameters, until=is_full)
    with only_known_values():
        return ReferrersPage(
            {Digest.parse(digest): descriptor.encode("ascii") for digest, descriptor in found}, count > len(found)
        )


def tagged_images(database: IRows, limit: int) -> list[PushedImage]:
    """Return the images of the first `limit` tags, in the order of their names."""
    return _images(database, _TAGGED_IMAGES, (limit,))


def all_images(database: IRows) -> list[PushedImage]:
    """Return the images of all tags, and all manifests that no tag names."""
    return _images(database, _TAGGED_IMAGES, (-1,)) + _images(database, _UNTAGGED_IMAGES, ())


def count_tags(database: IRows) -> int:
    """Return the number of all tags."""
    [(count,)] = database.rows("SELECT count(*) FROM tag")
    return int(count)


def only_reached_by(database: IRows, repository: Repository, tags: Iterable[str]) -> list[Digest]:
    """Return the manifests of a repository that would be garbage without these tags.

    These are the tags' manifests, the parts of their indexes, and their referrers, except those to which another tag
    leads, or a manifest to which no tag leads.
    """
    rows = database.rows(_ONLY_REACHED_BY, (*key_of(repository), json.dumps(list(tags))))
    with only_known_values():
        return [Digest.parse(digest) for (digest,) in rows]


def unreferenced_blobs(database: IRows, unused_since: float) -> list[tuple[Repository, Digest]]:
    """Return the blobs that no manifest of their repository refers to, and that were not pushed after `unused_since`.

    `unused_since` is in seconds since the epoch.
    """
    return _contents(database.rows(_UNREFERENCED, (unused_since,)))


def unreached_manifests(database: IRows) -> list[tuple[Repository, Digest]]:
    """Return the manifests that no tag leads to: not directly, nor by an index, nor by a subject."""
    return _contents(database.rows(_UNREACHED))


def _images(database: IRows, query: str, parameters: Values) -> list[PushedImage]:
    with only_known_values():
        return [
            PushedImage(
                repository_of(registry, path),
                name,
                Digest.parse(digest),
                since,
                frozenset(Digest.parse(part) for (part,) in database.rows(_CONTENTS, (registry, path, digest))),
                pulled,
            )
            for registry, path, name, digest, since, pulled in database.rows(query, parameters)
        ]


def _contents(rows: list[Values]) -> list[tuple[Repository, Digest]]:
    with only_known_values():
        return [(repository_of(registry, path), Digest.parse(digest)) for registry, path, digest in rows]


def repository_of(registry: str, path: str) -> Repository:
    return Repository.parse(path, registry or None)


@contextlib.contextmanager
def only_known_values() -> Iterator[None]:
    """Raise `StoreError` for values of the database that cannot be parsed."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, InvalidDigest, InvalidName) as error:
        raise StoreError("the database has entries that k3dreg did not write") from error
