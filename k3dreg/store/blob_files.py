"""Blobs as files, placed and evicted by rename.  Everything here blocks: call it in worker threads."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import InvalidDigest, StoreError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.blob_index import BlobIndex, IndexEntry
from k3dreg.store.durable_files import storage_errors, sync_directory, sync_file
from k3dreg.store.state_directory import StateDirectory

log = make_logger()


class BlobFiles:
    """The directory `blobs/<algorithm>/<first two digits>/<digits>` together with its index in memory.

    Placing and removing change both under one lock, which the reactor's thread never takes.  Call `start` first and
    `stop` at the end.
    """

    def __init__(self, state: StateDirectory, index: BlobIndex, kept: Callable[[], Mapping[Digest, int]]) -> None:
        """`kept` returns the blobs that must not be evicted with their sizes in bytes, 0 if unknown; it may block."""
        self.index = index
        self._kept = kept
        self._state = state
        self._files = threading.Lock()
        self._numbers = itertools.count()
        self._open = True

    def path_of(self, digest: Digest) -> Path:
        """Return the path at which the blob is, or would be."""
        return blob_path(self._state.blobs, digest)

    def staging_path(self) -> Path:
        """Return a new path in the staging directory."""
        return self._state.staging / f"blob-{next(self._numbers)}"

    def start(self) -> None:
        """Fill the index from the directory, remove damaged files, and evict beyond the limit.  Raises `StoreError`."""
        with storage_errors("reading it"):
            found = self._without_damaged(self._scan())
        unverified, unsynced = self._state.begin(digest for digest, _, _ in found)
        for digest, size, used in sorted(found, key=lambda blob: blob[2]):
            self.index.add(digest, IndexEntry(size, digest not in unverified, digest not in unsynced, used))
        self.evict()
        self._state.reserve.fill()

    def stop(self) -> None:
        """Sync the blobs that are only in the page cache, and record a clean stop.

        No blob can be placed afterwards.  Raises `StoreError`.
        """
        with self._files:
            if not self._open:
                return
            self._open = False
            unsynced = self.index.matching(lambda entry: entry.verified and not entry.synced)
            with storage_errors("syncing it"):
                paths = [self.path_of(digest) for digest in unsynced]
                for path in paths:
                    with contextlib.suppress(FileNotFoundError):
                        sync_file(path)
                self._sync_directories({path.parent for path in paths})
            self._state.end(self.index.matching(lambda entry: not entry.verified))

    def place(self, staged: Path, digest: Digest, size: int, *, durable: bool) -> None:
        """Move a verified file from the staging directory to the path of its digest.

        Unless `durable`, a good file that is already there is kept, and the caller removes `staged`.  `durable`: the
        caller has synced the file; when this returns, the blob survives a power failure.  Raises `StoreError` or
        `StoreFull`.
        """
        path = self.path_of(digest)
        with self._files, storage_errors("adding a blob"):
            if not self._open:
                raise StoreError("k3dreg is stopping")
            if not durable and self._has_good(digest, path, size):
                self.index.use(digest)
                return
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            staged.replace(path)
            if durable:
                self._sync_directories({path.parent})
            self.index.add(digest, IndexEntry(size, verified=True, synced=durable, stamped=time.time()))

    def remove(self, digest: Digest) -> None:
        """Remove a blob, held or not.  An unknown digest is no error.  Raises `StoreError`."""
        with self._files, storage_errors("removing a blob"):
            self._remove(digest)

    def remove_unwanted(self, digest: Digest) -> bool:
        """Remove a blob unless it is held or pinned; return whether it was removed.  Raises `StoreError`."""
        with self._files, storage_errors("removing a blob"):
            if self.index.is_wanted(digest):
                return False
            self.index.remove(digest)
            away = self._put_away(digest)
        with contextlib.suppress(OSError):
            away.unlink()
        self._state.reserve.fill()
        return True

    def sync(self, digest: Digest) -> bool:
        """Make a blob survive a power failure; return False if its file is missing or has another size.

        The caller must hold the blob.  Raises `StoreError`.
        """
        path = self.path_of(digest)
        entry = self.index.peek(digest)
        with storage_errors("syncing a blob"):
            if entry is None or not _is_whole(path, entry.size):
                return False
            if not entry.synced:
                sync_file(path)  # without the lock, because it may take long
                self._sync_directories({path.parent})
                entry.synced = True
        return True

    def remove_if_damaged(self, digest: Digest, size: int) -> None:
        """Remove a blob that could not be read, if its file is missing or has another size.  Raises `StoreError`."""
        path = self.path_of(digest)
        with self._files, storage_errors("removing a blob"):
            if not _is_whole(path, size):
                log.warn("{digest} is missing on the disk or has another size; k3dreg removed it", digest=digest)
                self._remove(digest)

    def verify(self, digest: Digest) -> bool:
        """Hash a blob that a crash may have damaged, and remove it if it is wrong.  Return whether it is good.

        Raises `StoreError`.
        """
        path = self.path_of(digest)
        try:
            with storage_errors("reading a blob"), path.open("rb") as file:
                good = hashlib.file_digest(file, digest.algorithm).hexdigest() == digest.hex
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            good = False
        with self._files, storage_errors("removing a blob"):
            entry = self.index.peek(digest)
            if entry is None or entry.verified:  # removed or replaced while it was hashed
                return entry is not None
            if good:
                # It was read from the disk, not from the page cache: this session did not write it.
                entry.verified = entry.synced = True
            else:
                log.warn("{digest} was damaged when the machine stopped; k3dreg removed it", digest=digest)
                self._remove(digest)
            return good

    def stamp(self, digest: Digest, used: float) -> None:
        """Record the time of the last use, in seconds since the epoch, as the file's mtime, for the next start."""
        with contextlib.suppress(OSError):  # evicted meanwhile, or a broken disk: the time is only a hint
            os.utime(self.path_of(digest), (used, used))

    def evict(self, excess: int | None = None) -> int:
        """Evict at least `excess` bytes, or what exceeds the limit; return how many bytes were evicted.

        Readers that have an evicted file open can still read it.
        """
        if excess is None and not self.index.exceeds_limit():
            return 0
        with self._files:
            try:
                victims = self.index.take_victims(self._kept(), excess)
            except StoreError as error:
                log.error("no blob is evicted: {error}", error=error)
                return 0
            # Renamed here and unlinked later: unlinking large files takes long, and the lock should not be held then.
            trash = [self._put_away(digest) for digest in victims]
        for path in trash:
            with contextlib.suppress(OSError):
                path.unlink()
        freed = sum(entry.size for entry in victims.values())
        if victims:
            log.info("evicted {count} blobs, {size:.1f} MB", count=len(victims), size=freed / 1e6)
        return freed

    def _put_away(self, digest: Digest) -> Path:
        path, away = self.path_of(digest), self.staging_path()
        try:
            path.rename(away)
        except OSError:  # already removed, or the disk is too full even for a new name
            return path
        return away

    def _remove(self, digest: Digest) -> None:
        self.index.remove(digest)
        self.path_of(digest).unlink(missing_ok=True)

    def _has_good(self, digest: Digest, path: Path, size: int) -> bool:
        entry = self.index.peek(digest)
        return entry is not None and entry.verified and _is_whole(path, size)

    def _sync_directories(self, directories: set[Path]) -> None:
        """Sync `directories` and their parents, which may be new as well."""
        above = {directory.parent for directory in directories}
        for directory in (*directories, *above, self._state.blobs):
            sync_directory(directory)

    def _without_damaged(self, found: list[tuple[Digest, int, float]]) -> list[tuple[Digest, int, float]]:
        """Remove the files of pushed content whose size differs from the recorded one; return the others."""
        sizes, good = self._kept(), []
        for digest, size, used in found:
            expected = sizes.get(digest, 0) or size
            if size == expected:
                good.append((digest, size, used))
                continue
            log.error(
                "{digest} has {size} bytes on the disk, not {expected}: it is damaged, and is removed; push it again",
                digest=digest,
                size=size,
                expected=expected,
            )
            self.path_of(digest).unlink(missing_ok=True)
        return good

    def _scan(self) -> list[tuple[Digest, int, float]]:
        """Return digest, size and time of last use of every blob.  Other files are counted in a log line and kept."""
        found, strangers = [], 0
        for directory, _, names in os.walk(self._state.blobs):
            for name in names:
                path = Path(directory, name)
                try:
                    digest = Digest.parse(f"{path.parts[-3]}:{name}")
                    status = path.lstat()
                except (InvalidDigest, OSError):
                    strangers += 1
                    continue
                if path != self.path_of(digest) or not stat.S_ISREG(status.st_mode):
                    strangers += 1
                else:
                    found.append((digest, status.st_size, status.st_mtime))
        if strangers:
            log.warn("{count} files in the blobs directory are not k3dreg's; k3dreg leaves them there", count=strangers)
        return found


def blob_path(blobs: Path, digest: Digest) -> Path:
    """Return the path of a blob in the directory `blobs`."""
    return blobs / digest.algorithm / digest.hex[:2] / digest.hex


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False
