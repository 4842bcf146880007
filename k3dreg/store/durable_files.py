"""Small things about files.  All of it blocks: for worker threads."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from k3dreg.oci.errors import StoreError, StoreFull
from k3dreg.streaming.file_handles import raise_if_too_many

# EDQUOT: the user's quota is as full as a disk is.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Raise `OSError`s of the block as `StoreFull`, `TooManyFiles` or another `StoreError`.

    `what` completes "the state directory: ... failed".  The text has no path in it: clients see it.
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
    """Put `data` at `path` so that nobody ever sees a part of it, by way of the file `staging`.  Raises `OSError`.

    `durable`: it is still there after the machine lost its power.
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
    """Make it, for this user alone, with those above it, unless it is there.  Raises `OSError`.

    Each that is made is durable: what is synced below it later would be lost with it.
    """
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's bytes durable, whoever wrote them."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
