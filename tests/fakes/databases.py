"""A real database for tests."""

from __future__ import annotations

from pathlib import Path

from k3dreg.store.database import DATABASE_FILE, Database
from k3dreg.store.pushed_database import PUSHED_TABLES


def open_database(directory: Path) -> Database:
    """Open the database in a state directory, as the daemon does.  The caller closes it."""
    directory.mkdir(parents=True, exist_ok=True)
    return Database(directory / DATABASE_FILE, (PUSHED_TABLES,))
