"""The state directory: who may use it, and what can be believed of what lies in it.

    lock        locked (flock) by the daemon that uses the directory
    pushed.db   what was pushed (k3dreg.store.pushed_database)
    session     what `Session` says
    reserve     room for when the disk is full (k3dreg.store.disk_reserve)
    staging/    what is being written; emptied at every start
    blobs/      content by digest (k3dreg.store.blob_store)
    images/     what is known of images (k3dreg.images.catalogue)

All of it blocks: for worker threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import Factory, frozen

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import InvalidDigest, StoreFull, UsageError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.disk_reserve import Reserve
from k3dreg.store.durable_files import make_directory, storage_errors, sync_directory, write_whole

log = make_logger()

# Made anew by the kernel at every boot (random(4)).
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@frozen
class Session:
    """The last use of a state directory, as it was recorded in it.

    Cached content is not written through to the disk: an fsync for each blob would cost more than exporting it again.
    What a killed daemon wrote is safe all the same, for it is in the kernel's page cache; it is lost only when the
    *machine* stops before the kernel has written it out.  So:

    - the daemon stopped cleanly: it has synced what it wrote, and named in `unverified` what it had no reason to
      look at and could not vouch for;
    - it did not, and the boot is the same: only the process died, what it could vouch for is as good as before;
    - it did not, and the boot is another: nothing can be believed before it was hashed.

    `sizes` are those of the blobs that were there, as far as they are known: a file with another size is damaged.
    """

    boot: str
    clean: bool
    unverified: frozenset[Digest] = frozenset()
    sizes: Mapping[Digest, int] = Factory(dict)

    def to_json(self) -> bytes:
        """As it is recorded."""
        value = {
            "boot": self.boot,
            "clean": self.clean,
            "unverified": sorted(map(str, self.unverified)),
            "sizes": {str(digest): size for digest, size in self.sizes.items()},
        }
        return json.dumps(value).encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> Session | None:
        """None for anything else than what `to_json` made."""
        try:
            value = json.loads(data)
            unverified = frozenset(Digest.parse(text) for text in value["unverified"])
            sizes = {Digest.parse(text): int(size) for text, size in value.get("sizes", {}).items()}
            return cls(str(value["boot"]), value["clean"] is True, unverified, sizes)
        except (ValueError, TypeError, KeyError, AttributeError, InvalidDigest):
            return None


class StateDirectory:
    """A state directory that is ours until `close`."""

    def __init__(self, root: Path, boot_id_file: Path = _BOOT_ID) -> None:
        """Makes the directory with what belongs in it, and locks it.

        Raises `UsageError` when another daemon uses it or it cannot be made.
        """
        self.root = root
        self.staging = root / "staging"
        self.blobs = root / "blobs"
        self.images = root / "images"
        self._session = root / "session"
        self.reserve = Reserve(root / "reserve")
        try:
            for directory in (root, self.staging, self.blobs, self.images):
                make_directory(directory)
            self._lock = os.fdopen(os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
        except OSError as error:
            raise UsageError(f"the state directory {root} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UsageError(f"the state directory {root} is used by another k3dreg; give this one its own") from error
        # Both make room until the start is over.
        self.reserve.release()
        self.clear_staging()
        try:
            self._boot = boot_id_file.read_text("ascii").strip()
        except OSError:
            self._boot = ""  # not Linux: every unclean stop may have been the machine's

    def last_sizes(self) -> Mapping[Digest, int]:
        """The sizes that blobs had when that was last recorded."""
        last = self._last()
        return {} if last is None else last.sizes

    def begin(self, held: Mapping[Digest, int]) -> tuple[frozenset[Digest], frozenset[Digest]]:
        """Record that the directory is in use, and say what can be believed of the content `held` in it, with its size.

        Returns what must be hashed before it is believed, and what can be believed but may not be on the disk yet.
        Raises `StoreError`.
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
        self._record(Session(self._boot, clean=False, unverified=unverified, sizes=held))
        return unverified, unsynced

    def end(self, unverified: Iterable[Digest], sizes: Mapping[Digest, int]) -> None:
        """Record a clean stop, with the sizes of all blobs.

        Call it when everything but `unverified` has been synced.  Raises `StoreError`.
        """
        self._record(Session(self._boot, clean=True, unverified=frozenset(unverified), sizes=sizes))

    def clear_staging(self) -> None:
        """Remove what an earlier daemon did not get done."""
        with contextlib.suppress(OSError):  # a file system that is read-only now
            for left in self.staging.iterdir():
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others use the directory.  Safe any number of times."""
        self._lock.close()

    def _last(self) -> Session | None:
        try:
            return Session.from_json(self._session.read_bytes())
        except OSError:
            return None  # the first start; or lost with the power, in which case nothing else can be believed

    def _record(self, session: Session) -> None:
        """Durable: it tells about a power failure.

        Without room for it there is no record, and then the next start believes nothing that it has not hashed.
        """
        try:
            with storage_errors("recording the session"):
                write_whole(self._session, self.staging / "session", session.to_json(), durable=True)
        except StoreFull as error:
            log.error("{error}; kept blobs are verified after the next start", error=error)
            with storage_errors("recording the session"):
                self._session.unlink(missing_ok=True)
                sync_directory(self.root)
