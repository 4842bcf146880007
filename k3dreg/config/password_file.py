"""Read the file of users and bcrypt hashes that `--htpasswd` names."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from k3dreg.formats.htpasswd import parse_htpasswd
from k3dreg.oci.errors import UsageError

# Bytes.  A line has less than a hundred.
_LARGEST_FILE = 1024 * 1024

# A file's modification time in ns, inode and size in bytes.  A changed file has another state.
FileState = tuple[int, int, int]


def read_password_file(path: Path, known: FileState | None = None) -> tuple[FileState, Mapping[str, bytes]] | None:
    """Return the file's state and its users with their hashes; None if its state is still `known`.

    Blocks.  Raises `UsageError` for a file that cannot be used.
    """
    try:
        # O_NONBLOCK: without it, opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        # `open(descriptor)` alone would fail for a directory, and leave the descriptor open.
        try:
            found = os.fstat(descriptor)
            state = (found.st_mtime_ns, found.st_ino, found.st_size)
            if state == known:
                return None
            if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_FILE:
                raise UsageError("it is too large, or not a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                hashes = parse_htpasswd(file.read(_LARGEST_FILE))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UsageError(f"it cannot be read ({error.strerror})") from error
    if not hashes:
        # An error, because a file is empty for a moment while an editor or a script writes it.  Without users, every
        # login would fail.
        raise UsageError("it has no users")
    return state, hashes
