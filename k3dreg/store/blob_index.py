"""What a store holds, in memory: sizes, order of use, who must not be evicted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from attrs import define, frozen

from k3dreg.oci.digest import Digest

# Seconds for which a blob is not evicted after `use`: time for the caller to begin to send it.
JUST_USED = 1.0
# Bytes.  Blobs smaller than this are evicted last: manifests and configs are what a HEAD is answered from, a thousand
# of them weigh as much as one layer, and without them an image is exported again to answer it.
SMALL = 64 * 1024


@frozen
class Usage:
    """Bytes and number of blobs held, the limit in bytes, and what was evicted since the start."""

    bytes: int
    count: int
    limit: int
    evicted_blobs: int = 0
    evicted_bytes: int = 0


@define
class IndexEntry:
    """One blob.

    `verified`: it has been hashed since it could last have been damaged.  `synced`: it is on the disk, not only in
    the kernel's cache.  `stamped`: the time of the last use as the file tells it, in seconds since the epoch.
    `used`: the time of the last use in this process, by the index's clock.
    """

    size: int
    verified: bool
    synced: bool
    stamped: float
    used: float = float("-inf")


class BlobIndex:
    """Thread-safe; does no I/O and never waits for any, so the reactor's thread may use it too."""

    def __init__(
        self, limit: int, is_pinned: Callable[[Digest], bool], now: Callable[[], float] = time.monotonic
    ) -> None:
        """`limit` in bytes.  `is_pinned` says what may never be evicted; called in any thread, it must be quick.

        `now` is the clock, in seconds.
        """
        self._now = now
        self._limit = limit
        self._is_pinned = is_pinned
        self._lock = threading.Lock()
        self._entries: dict[Digest, IndexEntry] = {}  # least recently used first
        self._holds: dict[Digest, int] = {}
        self._bytes = 0
        self._evicted_blobs = 0
        self._evicted_bytes = 0

    def __contains__(self, digest: Digest) -> bool:
        with self._lock:  # `use` takes an entry out for a moment
            return digest in self._entries

    def usage(self) -> Usage:
        """How much there is."""
        with self._lock:
            return Usage(self._bytes, len(self._entries), self._limit, self._evicted_blobs, self._evicted_bytes)

    def set_limit(self, limit: int) -> bool:
        """From now on this many bytes.  Whether there is more than that now."""
        with self._lock:
            self._limit = limit
            return self._bytes > limit

    def peek(self, digest: Digest) -> IndexEntry | None:
        """What is known of a blob.  Not a use."""
        with self._lock:
            return self._entries.get(digest)

    def use(self, digest: Digest) -> IndexEntry | None:
        """As `peek`, and it is the most recently used from now on."""
        with self._lock:
            entry = self._entries.pop(digest, None)
            if entry is not None:
                self._entries[digest] = entry
                entry.used = self._now()
            return entry

    def add(self, digest: Digest, entry: IndexEntry) -> None:
        """A blob is there, or there anew."""
        with self._lock:
            self._drop(digest)
            self._entries[digest] = entry
            self._bytes += entry.size

    def remove(self, digest: Digest) -> None:
        """A blob is gone.  No error when it was not there."""
        with self._lock:
            self._drop(digest)

    def hold(self, digests: Iterable[Digest]) -> None:
        """Do not evict these until as many `release`s."""
        with self._lock:
            for digest in digests:
                self._holds[digest] = self._holds.get(digest, 0) + 1

    def release(self, digests: Iterable[Digest]) -> bool:
        """Undo one `hold`.  Whether there is more than the limit now."""
        with self._lock:
            for digest in digests:
                left = self._holds.get(digest, 0) - 1
                if left > 0:
                    self._holds[digest] = left
                else:
                    self._holds.pop(digest, None)
            return self._bytes > self._limit

    def held(self) -> list[Digest]:
        """The digests that are held."""
        with self._lock:
            return list(self._holds)

    def is_held(self, digest: Digest) -> bool:
        """Whether it is held."""
        with self._lock:
            return digest in self._holds

    def is_wanted(self, digest: Digest) -> bool:
        """Whether it is held or pinned."""
        with self._lock:
            return digest in self._holds or self._is_pinned(digest)

    def take_victims(self, excess: int | None = None) -> dict[Digest, IndexEntry]:
        """Remove, and return, what is to be evicted: at least `excess` bytes, or what is beyond the limit.

        Least recently used first, but the small ones after all others; nothing that is held, pinned or used within
        the last `JUST_USED` seconds, even when that leaves too much.
        """
        with self._lock:
            if excess is None:
                excess = self._bytes - self._limit
                if excess > 0:
                    # The limit is the cache's.  Were the users' own content counted, much of it would leave no cache.
                    excess -= sum(entry.size for digest, entry in self._entries.items() if self._is_pinned(digest))
            victims: dict[Digest, IndexEntry] = {}
            idle_since = self._now() - JUST_USED
            for small in (False, True):
                for digest, entry in self._entries.items():
                    if excess <= 0:
                        break
                    if entry.used > idle_since:
                        continue
                    if (entry.size < SMALL) is small and digest not in self._holds and not self._is_pinned(digest):
                        victims[digest] = entry
                        excess -= entry.size
            for digest, entry in victims.items():
                self._drop(digest)
                self._evicted_blobs += 1
                self._evicted_bytes += entry.size
            return victims

    def sizes(self) -> dict[Digest, int]:
        """The size of each blob, in bytes."""
        with self._lock:
            return {digest: entry.size for digest, entry in self._entries.items()}

    def matching(self, wanted: Callable[[IndexEntry], bool]) -> list[Digest]:
        """The blobs whose entries are `wanted`."""
        with self._lock:
            return [digest for digest, entry in self._entries.items() if wanted(entry)]

    def _drop(self, digest: Digest) -> None:
        entry = self._entries.pop(digest, None)
        if entry is not None:
            self._bytes -= entry.size
