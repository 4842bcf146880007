"""A real database for tests, and what is in it."""

from __future__ import annotations

from pathlib import Path

from k3dreg.images.content_map import CONTENT_TABLES
from k3dreg.oci.digest import Digest
from k3dreg.oci.reference import Repository
from k3dreg.registry.tag_records import TAG_TABLES
from k3dreg.store.database import DATABASE_FILE, Database
from k3dreg.store.pushed_tables import PUSHED_TABLES, key_of


def open_database(directory: Path) -> Database:
    """Open the database in a state directory, as the daemon does.  The caller closes it."""
    directory.mkdir(parents=True, exist_ok=True)
    return Database(directory / DATABASE_FILE, (PUSHED_TABLES, CONTENT_TABLES, TAG_TABLES))


def blobs_in(database: Database, repository: Repository) -> dict[Digest, float]:
    """Return a repository's blobs, each with its time."""
    found = database.rows("SELECT digest, since FROM blob WHERE registry=? AND path=?", key_of(repository))
    return {Digest.parse(digest): since for digest, since in found}


def manifests_in(database: Database, repository: Repository) -> dict[Digest, float]:
    """Return a repository's manifests, each with its time."""
    found = database.rows("SELECT digest, since FROM manifest WHERE registry=? AND path=?", key_of(repository))
    return {Digest.parse(digest): since for digest, since in found}


def tags_in(database: Database, repository: Repository) -> dict[str, Digest]:
    """Return a repository's tags, each with the digest that it names."""
    found = database.rows("SELECT name, digest FROM tag WHERE registry=? AND path=?", key_of(repository))
    return {name: Digest.parse(digest) for name, digest in found}
