"""Write and sync files, and convert their errors.  Everything here blocks: call it in worker threads."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from k3dreg.oci.errors import StoreError, StoreFull
from k3dreg.streaming.file_handles import raise_if_too_many

# EDQUOT: the user's quota is used up, which is the same to k3dreg as a full disk.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Raise an `OSError` of the `with` block as `StoreFull`, `TooManyFiles` or `StoreError`.

    `what` completes "the state directory could not be used: ... failed".  It must contain no path, because clients see
    the text.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        if error.errno in NO_ROOM:
            raise StoreFull(
                f"no room is left on the disk of the state directory: {what} failed ({reason})",
                advice="free some space there, or give k3dreg a smaller --cache-size",
            ) from error
        raise_if_too_many(error)
        raise StoreError(f"the state directory could not be used: {what} failed ({reason})") from error


def write_whole(path: Path, staging: Path, data: bytes, *, durable: bool = False) -> None:
    """Write `data` to the file `staging` and rename it to `path`, so that no reader sees a part of it.

    `durable`: when this returns, the file survives a power failure.  Raises `OSError`.
    """
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        staging.replace(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents, for this user only.  Raises `OSError`.

    Each new directory is synced into its parent: otherwise a power failure would lose it with the files in it, even
    those that were synced.
    """
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the renames, new files and removals in a directory survive a power failure.  Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's bytes survive a power failure, even if another process wrote them.  Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
