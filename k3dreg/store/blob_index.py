"""The index of a blob store in memory: sizes, order of use, and which blobs must not be evicted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable

from attrs import define, frozen

from k3dreg.oci.digest import Digest

# Seconds for which a blob is not evicted after `use`: time for the caller to start sending it.
JUST_USED = 1.0
# Bytes.  Smaller blobs are evicted last.  They are manifests and configs: a thousand of them take as much room as one
# layer, and without them k3dreg would have to export an image again to answer a HEAD.
SMALL = 64 * 1024


@frozen
class Usage:
    """The bytes and number of blobs in a store, its limit in bytes, and what it has evicted since its start."""

    bytes: int
    count: int
    limit: int
    evicted_blobs: int = 0
    evicted_bytes: int = 0


@define
class IndexEntry:
    """What the index knows of one blob.  `size` is in bytes.

    `verified`: it was hashed after the last crash that could have damaged it.  `synced`: it is on the disk, not only in
    the kernel's page cache.  `stamped`: the time of the last use as its file records it, in seconds since the epoch.
    `used`: the time of the last use in this process, by the index's clock.
    """

    size: int
    verified: bool
    synced: bool
    stamped: float
    used: float = float("-inf")


class BlobIndex:
    """The blobs of a store, least recently used first.

    Thread-safe.  It never does or waits for I/O, so the reactor's thread may use it, too.
    """

    def __init__(
        self, limit: int, is_pinned: Callable[[Digest], bool], now: Callable[[], float] = time.monotonic
    ) -> None:
        """`limit`: bytes.  `now`: a clock in seconds.

        `is_pinned` tells whether a blob must never be evicted.  It is called in any thread and must be quick.
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
        with self._lock:  # `use` removes an entry for a moment
            return digest in self._entries

    def usage(self) -> Usage:
        """Return how much the store holds and has evicted."""
        with self._lock:
            return Usage(self._bytes, len(self._entries), self._limit, self._evicted_blobs, self._evicted_bytes)

    def set_limit(self, limit: int) -> bool:
        """Set the limit in bytes; return whether the blobs exceed it now."""
        with self._lock:
            self._limit = limit
            return self._bytes > limit

    def peek(self, digest: Digest) -> IndexEntry | None:
        """Return the entry of a blob, or None.  Does not count as a use."""
        with self._lock:
            return self._entries.get(digest)

    def use(self, digest: Digest) -> IndexEntry | None:
        """Return the entry of a blob, or None, and make the blob the most recently used."""
        with self._lock:
            entry = self._entries.pop(digest, None)
            if entry is not None:
                self._entries[digest] = entry
                entry.used = self._now()
            return entry

    def add(self, digest: Digest, entry: IndexEntry) -> None:
        """Add a blob, in place of an entry of the same digest."""
        with self._lock:
            self._drop(digest)
            self._entries[digest] = entry
            self._bytes += entry.size

    def remove(self, digest: Digest) -> None:
        """Remove the entry of a blob.  An unknown digest is no error."""
        with self._lock:
            self._drop(digest)

    def hold(self, digests: Iterable[Digest]) -> None:
        """Do not evict these blobs, present or not, before as many calls of `release`."""
        with self._lock:
            for digest in digests:
                self._holds[digest] = self._holds.get(digest, 0) + 1

    def release(self, digests: Iterable[Digest]) -> bool:
        """Undo one `hold`; return whether the blobs exceed the limit."""
        with self._lock:
            for digest in digests:
                left = self._holds.get(digest, 0) - 1
                if left > 0:
                    self._holds[digest] = left
                else:
                    self._holds.pop(digest, None)
            return self._bytes > self._limit

    def held(self) -> list[Digest]:
        """Return the digests that are held."""
        with self._lock:
            return list(self._holds)

    def is_held(self, digest: Digest) -> bool:
        """Return whether the digest is held."""
        with self._lock:
            return digest in self._holds

    def is_wanted(self, digest: Digest) -> bool:
        """Return whether the digest is held or pinned."""
        with self._lock:
            return digest in self._holds or self._is_pinned(digest)

    def exceeds_limit(self) -> bool:
        """Return whether all blobs together, pinned ones too, exceed the limit."""
        with self._lock:
            return self._bytes > self._limit

    def take_victims(self, pinned: Collection[Digest], excess: int | None = None) -> dict[Digest, IndexEntry]:
        """Remove and return the entries to evict: at least `excess` bytes, or what exceeds the limit.

        Takes the least recently used blobs first, and those below `SMALL` bytes last.  Never takes a blob that is held,
        pinned or was used within the last `JUST_USED` seconds, even if the rest still exceeds the limit.  `pinned` is
        what was pinned some time ago: it saves asking `is_pinned` for each entry.
        """
        with self._lock:
            if excess is None:
                # Pinned (pushed) content does not count: much of it would otherwise leave no room for the cache.
                excess = self._bytes - self._limit
                excess -= sum(entry.size for digest, entry in self._entries.items() if digest in pinned)
            victims: dict[Digest, IndexEntry] = {}
            idle_since = self._now() - JUST_USED
            for small in (False, True):
                for digest, entry in self._entries.items():
                    if excess <= 0:
                        break
                    if entry.used > idle_since or digest in pinned or digest in self._holds:
                        continue
                    if (entry.size < SMALL) is small and not self._is_pinned(digest):
                        victims[digest] = entry
                        excess -= entry.size
            for digest, entry in victims.items():
                self._drop(digest)
                self._evicted_blobs += 1
                self._evicted_bytes += entry.size
            return victims

    def matching(self, wanted: Callable[[IndexEntry], bool]) -> list[Digest]:
        """Return the digests of the entries for which `wanted` returns true."""
        with self._lock:
            return [digest for digest, entry in self._entries.items() if wanted(entry)]

    def _drop(self, digest: Digest) -> None:
        entry = self._entries.pop(digest, None)
        if entry is not None:
            self._bytes -= entry.size
