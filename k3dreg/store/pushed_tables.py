"""The tables of pushed content, and the statements that change them."""

from __future__ import annotations

import json
import math

from k3dreg.oci.digest import Digest
from k3dreg.oci.reference import Repository
from k3dreg.store.database import Statement, Tables, Values
from k3dreg.store.interfaces import NodeImages, PushedManifest

# `registry` is "" for this registry's own repositories.  `since`: the time of the push in seconds since the epoch, 0 if
# unknown.  `size`: bytes; a blob's is 0 if unknown.  `parts`: a JSON list of digests.  `descriptor`: the manifest's
# entry in a list of referrers as JSON.  It and `parts` may be megabytes: they come last, so that reading the columns
# before them reads one page.  `pushed`: the time of the tag's push.  `pulled`: the time of the last request for its
# manifest, which may be `PULL_RECORDED_EVERY` seconds late; 0 for never.  `node_image`: the digest of an image that a
# node, by the ID of its container, held when it was asked.
_BLOB = """CREATE TABLE blob (registry TEXT, path TEXT, digest TEXT, since REAL, size INTEGER DEFAULT 0,
    PRIMARY KEY (registry, path, digest)) WITHOUT ROWID"""
_MANIFEST = """CREATE TABLE manifest (registry TEXT, path TEXT, digest TEXT, media_type TEXT, size INTEGER, since REAL,
    subject TEXT, artifact_type TEXT, parts TEXT, descriptor TEXT,
    PRIMARY KEY (registry, path, digest)) WITHOUT ROWID"""
_TAG = """CREATE TABLE tag (registry TEXT, path TEXT, name TEXT, digest TEXT, pushed REAL, pulled REAL,
    PRIMARY KEY (registry, path, name)) WITHOUT ROWID"""
# Of version 5: the manifest that a node had requested last of a repository.
_NODE_PULL = """CREATE TABLE node_pull (registry TEXT, path TEXT, node TEXT, digest TEXT,
    PRIMARY KEY (registry, path, node)) WITHOUT ROWID"""
_NODE_IMAGE = "CREATE TABLE node_image (node TEXT, digest TEXT, PRIMARY KEY (node, digest)) WITHOUT ROWID"
_INDEXES = (
    "CREATE INDEX blob_by_digest ON blob (digest, size)",
    "CREATE INDEX manifest_by_digest ON manifest (digest, size)",
    "CREATE INDEX manifest_by_subject ON manifest (registry, path, subject, digest)",
    "CREATE INDEX tag_by_digest ON tag (registry, path, digest)",
    # "lexical (i.e. case-insensitive alphanumeric) order" (distribution-spec 1.1, "Listing Tags").
    "CREATE INDEX tag_in_order ON tag (registry, path, name COLLATE NOCASE, name)",
)

PUSHED_TABLES = Tables(
    "pushed",
    6,
    (_BLOB, _MANIFEST, _TAG, _NODE_IMAGE, *_INDEXES),
    {
        1: ("ALTER TABLE manifest ADD COLUMN since REAL DEFAULT 0",),
        2: ("ALTER TABLE blob ADD COLUMN size INTEGER DEFAULT 0",),
        3: (
            "ALTER TABLE manifest RENAME TO old_manifest",
            _MANIFEST,
            # 255: `media_types.LONGEST_TYPE`.
            """INSERT INTO manifest
                SELECT registry, path, digest, coalesce(json_extract(descriptor, '$.mediaType'), ''),
                       json_extract(descriptor, '$.size'), since, subject,
                       substr(coalesce(json_extract(descriptor, '$.artifactType'), ''), 1, 255),
                       parts, descriptor
                FROM old_manifest""",
            "DROP TABLE old_manifest",
            *_INDEXES,
        ),
        4: (
            "ALTER TABLE tag ADD COLUMN pushed REAL",
            "ALTER TABLE tag ADD COLUMN pulled REAL",
            # Pulls were not recorded.  A node may have pulled any tag a moment ago.
            """UPDATE tag SET pulled=CAST(strftime('%s', 'now') AS REAL), pushed=coalesce(
                (SELECT nullif(since, 0) FROM manifest
                 WHERE (manifest.registry, manifest.path, manifest.digest)=(tag.registry, tag.path, tag.digest)),
                CAST(strftime('%s', 'now') AS REAL))""",
            _NODE_PULL,
        ),
        5: (
            _NODE_IMAGE,
            "INSERT OR IGNORE INTO node_image SELECT node, digest FROM node_pull",
            "DROP TABLE node_pull",
        ),
    },
)

# Seconds after which a pull of a manifest is recorded again.  Without a limit, each HEAD would write to the disk.
PULL_RECORDED_EVERY = 3600.0


def key_of(repository: Repository) -> tuple[str, str]:
    """Return the columns `registry` and `path` of a repository."""
    return (repository.registry or "", repository.path)


def add_blob(repository: Repository, digest: Digest, size: int, since: float) -> Statement:
    """Add a blob, or renew its time."""
    return ("INSERT OR REPLACE INTO blob VALUES (?, ?, ?, ?, ?)", (*key_of(repository), str(digest), since, size))


def remove_blob(repository: Repository, digest: Digest, unused_since: float = math.inf) -> Statement:
    """Remove a blob that was not pushed after `unused_since`."""
    return (
        "DELETE FROM blob WHERE registry=? AND path=? AND digest=? AND since<=?",
        (*key_of(repository), str(digest), unused_since),
    )


def add_manifest(repository: Repository, manifest: PushedManifest, since: float) -> Statement:
    """Add a manifest, or renew its time."""
    descriptor = manifest.descriptor
    values: Values = (
        *key_of(repository),
        str(manifest.digest),
        descriptor.media_type,
        descriptor.size,
        since,
        None if manifest.subject is None else str(manifest.subject),
        descriptor.artifact_type,
        json.dumps(sorted(map(str, manifest.parts))),
        json.dumps(descriptor.to_json()),
    )
    return ("INSERT OR REPLACE INTO manifest VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


def remove_manifest(repository: Repository, digest: Digest) -> list[Statement]:
    """Remove the tags that name a manifest, and the manifest itself."""
    values = (*key_of(repository), str(digest))
    return [
        ("DELETE FROM tag WHERE registry=? AND path=? AND digest=?", values),
        ("DELETE FROM manifest WHERE registry=? AND path=? AND digest=?", values),
    ]


def remove_untagged(repository: Repository, digest: Digest, pushed_until: float) -> Statement:
    """Remove a manifest, unless a tag names it or it was pushed after `pushed_until`."""
    return (
        """DELETE FROM manifest WHERE registry=?1 AND path=?2 AND digest=?3 AND since<=?4
            AND NOT EXISTS (SELECT 1 FROM tag WHERE registry=?1 AND path=?2 AND digest=?3)""",
        (*key_of(repository), str(digest), pushed_until),
    )


def add_tag(repository: Repository, name: str, digest: Digest, pushed: float) -> Statement:
    """Add a tag, or move it, or renew its time."""
    return (
        """INSERT INTO tag VALUES (?, ?, ?, ?, ?, 0) ON CONFLICT (registry, path, name) DO UPDATE SET
            pushed=excluded.pushed, digest=excluded.digest,
            pulled=CASE digest WHEN excluded.digest THEN pulled ELSE 0 END""",
        (*key_of(repository), name, str(digest), pushed),
    )


def remove_tag(repository: Repository, name: str, pushed_until: float = math.inf) -> Statement:
    """Remove a tag, unless it was pushed after `pushed_until`."""
    return (
        "DELETE FROM tag WHERE registry=? AND path=? AND name=? AND pushed<=?",
        (*key_of(repository), name, pushed_until),
    )


def record_pull(repository: Repository, digest: Digest, pulled: float) -> Statement:
    """Record for all tags that name a manifest that it was requested."""
    return (
        "UPDATE tag SET pulled=? WHERE registry=? AND path=? AND digest=?",
        (pulled, *key_of(repository), str(digest)),
    )


def record_node_images(nodes: NodeImages) -> list[Statement]:
    """Replace what is recorded of the images on nodes: see `IPushed.record_node_images`."""
    answered = {node: digests for node, digests in nodes.items() if digests is not None}
    rows = [(node, str(digest)) for node, digests in answered.items() for digest in digests]
    return [
        ("DELETE FROM node_image WHERE node NOT IN (SELECT value FROM json_each(?))", (json.dumps(list(nodes)),)),
        ("DELETE FROM node_image WHERE node IN (SELECT value FROM json_each(?))", (json.dumps(list(answered)),)),
        (
            """INSERT OR IGNORE INTO node_image
                SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)""",
            (json.dumps(rows),),
        ),
    ]
