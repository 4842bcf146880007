"""The state directory: its lock, and which of its blobs must be verified after a crash.

    lock        locked (flock) by the daemon that uses the directory
    pushed.db   what was pushed, and the content of images (k3dreg.store.database)
    session     the last use of the directory (`Session`)
    reserve     reserved room for a full disk (k3dreg.store.disk_reserve)
    staging/    files that are being written; emptied at every start
    blobs/      content by digest (k3dreg.store.blob_store)

Everything here blocks: call it in worker threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import InvalidDigest, StateInUse, StoreFull, UsageError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.disk_reserve import Reserve
from k3dreg.store.durable_files import make_directory, storage_errors, sync_directory, write_whole

log = make_logger()

# The kernel generates a new ID at every boot (random(4)).
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@frozen
class Session:
    """The last use of a state directory, as the file `session` records it.

    Cached blobs are not synced when they are written: an fsync for each would take longer than exporting it again.
    The blobs of a killed daemon are safe nevertheless, because they are in the kernel's page cache.  They are lost only
    if the *machine* stops before the kernel has written them to the disk.  So, at the next start:

    - If the last daemon stopped cleanly, it has synced its blobs.  `unverified` names the blobs that it had found
      unverified at its start and did not hash.
    - If it did not, and the boot is the same, only the process died.  The same blobs are unverified as before.
    - If it did not, and the boot is another, every blob must be hashed before it is served.
    """

    boot: str
    clean: bool
    unverified: frozenset[Digest] = frozenset()

    def to_json(self) -> bytes:
        """Return the session as JSON."""
        value = {"boot": self.boot, "clean": self.clean, "unverified": sorted(map(str, self.unverified))}
        return json.dumps(value).encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> Session | None:
        """Parse the JSON of `to_json`; return None for any other bytes."""
        try:
            value = json.loads(data)
            unverified = frozenset(Digest.parse(text) for text in value["unverified"])
            return cls(str(value["boot"]), value["clean"] is True, unverified)
        except (ValueError, TypeError, KeyError, AttributeError, InvalidDigest):
            return None


class StateDirectory:
    """A state directory, locked for this process until `close`."""

    def __init__(self, root: Path, boot_id_file: Path = _BOOT_ID) -> None:
        """Create the directory and its subdirectories if needed, lock it, and empty its staging directory.

        Raises `StateInUse` when another process uses it, and `UsageError` if it cannot be created.
        """
        self.root = root
        self.staging = root / "staging"
        self.blobs = root / "blobs"
        self._session = root / "session"
        self.reserve = Reserve(root / "reserve")
        try:
            for directory in (root, self.staging, self.blobs):
                make_directory(directory)
            self._lock = os.fdopen(os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
        except OSError as error:
            raise UsageError(f"the state directory {root} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StateInUse(f"the state directory {root} is used by another k3dreg; give this one its own") from error
        # Both free room on a full disk, which the start needs; `BlobFiles.start` fills the reserve again.
        self.reserve.release()
        self.clear_staging()
        # Records of images, until version 0.1.0; a cache.
        shutil.rmtree(root / "images", ignore_errors=True)
        try:
            self._boot = boot_id_file.read_text("ascii").strip()
        except OSError:
            self._boot = ""  # not Linux: every unclean stop may have been a crash of the machine

    def begin(self, held: Iterable[Digest]) -> tuple[frozenset[Digest], frozenset[Digest]]:
        """Record that the directory is in use and has the blobs `held`.

        Returns the blobs that must be hashed before they are served, and the good blobs that may only be in the page
        cache.  Raises `StoreError`.
        """
        last = self._last()
        everything = frozenset(held)
        same_boot = last is not None and last.boot == self._boot != ""
        unverified = last.unverified & everything if last is not None and (last.clean or same_boot) else everything
        unsynced = frozenset() if last is not None and last.clean else everything - unverified
        if unverified:
            log.info(
                "{count} blobs are verified at their next use: the machine stopped before they were synced to disk",
                count=len(unverified),
            )
        self._record(Session(self._boot, clean=False, unverified=unverified))
        return unverified, unsynced

    def end(self, unverified: Iterable[Digest]) -> None:
        """Record a clean stop.

        The caller must have synced all blobs but those in `unverified`.  Raises `StoreError`.
        """
        self._record(Session(self._boot, clean=True, unverified=frozenset(unverified)))

    def clear_staging(self) -> None:
        """Remove the unfinished files of an earlier daemon."""
        with contextlib.suppress(OSError):  # the file system may be read-only now
            for left in self.staging.iterdir():
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)

    def close(self) -> None:
        """Unlock the directory, so that another process may use it.  Safe any number of times."""
        self._lock.close()

    def _last(self) -> Session | None:
        try:
            return Session.from_json(self._session.read_bytes())
        except OSError:
            return None  # the first start, or a power failure lost the file: then every blob must be hashed

    def _record(self, session: Session) -> None:
        """Write `session` so that it survives a power failure, which it must help to detect.

        On a full disk, remove the record instead: the next start then hashes every blob before it is served.
        """
        try:
            with storage_errors("recording the session"):
                write_whole(self._session, self.staging / "session", session.to_json(), durable=True)
        except StoreFull as error:
            log.error("{error}; kept blobs are verified after the next start", error=error)
            with storage_errors("recording the session"):
                self._session.unlink(missing_ok=True)
                sync_directory(self.root)
