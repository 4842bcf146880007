"""The ID of a state directory."""

from __future__ import annotations

import secrets
from pathlib import Path

from k3dreg.oci.digest import Digest
from k3dreg.store.durable_files import storage_errors, write_whole

# Hexadecimal digits: enough to make equal IDs on one engine impossible in practice.
_IDENTITY_LENGTH = 16


def identity(state_dir: Path) -> str:
    """Return the ID by which this state directory's containers differ from those of other k3dregs on the engine.

    The ID is made once, kept in the state directory, and the same after every restart.  Blocks.  Raises `StoreError`.
    """
    path = state_dir / "identity"
    with storage_errors("reading its identity"):
        try:
            known = path.read_text("ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            known = ""
        if not (known.isalnum() and len(known) == _IDENTITY_LENGTH):
            known = secrets.token_hex(_IDENTITY_LENGTH // 2)
            write_whole(path, state_dir / "staging" / "identity", known.encode("ascii"))
    return known


def public_name(identity: str) -> str:
    """Return the name of the state directory with this ID that clients may see."""
    return Digest.of(identity.encode()).short
