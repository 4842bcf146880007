"""The part of an export that runs in worker threads: parse the archive, hash its blobs, write them into the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from attrs import frozen

from k3dreg.formats.image_archive import ArchiveIndex, ArchiveReader, BlobBegin, BlobData, BlobEnd
from k3dreg.oci.digest import Digest
from k3dreg.store.interfaces import IBlobStore, IBlobWriter
from k3dreg.streaming.content import IFileHandle


@frozen
class Begun:
    """A blob has begun to arrive and continues in the next batch.

    There is no such event for blobs whose digest the archive does not tell.  The receiver must close `handle`, which
    reads the blob's staging file.
    """

    digest: Digest
    size: int
    handle: IFileHandle


@frozen
class Grown:
    """The blob of the last `Begun` now has `total` bytes in its staging file."""

    total: int


@frozen
class Kept:
    """A blob is verified and in the store.  `was_here`: it was there before, so it was not written again."""

    digest: Digest
    size: int
    was_here: bool


SpoolEvent = Begun | Grown | Kept


def close_handles(events: Iterable[SpoolEvent]) -> None:
    """Close the handles of `events` that were not processed, because their caller was cancelled."""
    for event in events:
        if isinstance(event, Begun):
            event.handle.close()


class ExportSpool:
    """Parses the bytes of a `docker save` and writes its verified blobs into the store, which holds them for it.

    Call `feed` with all bytes, then `finish`; at the end, in any case, `abort` and then `release`.  All methods but
    `release` hash and do I/O: call them in worker threads.  `abort` waits for a `feed` whose caller was cancelled.
    """

    def __init__(self, store: IBlobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._reader = ArchiveReader()
        self._announced = False
        self._releases: list[Callable[[], None]] = []
        self._begun: BlobBegin | None = None
        self._writer: IBlobWriter | None = None
        self._members: dict[str, Kept] = {}

    @property
    def members(self) -> Mapping[str, Kept]:
        """Return the blobs that are in the store, by their names in the archive."""
        return self._members

    def feed(self, data: bytes) -> list[SpoolEvent]:
        """Process the next bytes of the archive; return what happened.

        Raises `ArchiveError`, `DigestMismatch`, `StoreFull` or `StoreError`; the caller must then call `abort`.
        """
        events: list[SpoolEvent] = []
        with self._lock:
            for event in self._reader.feed(data):
                if isinstance(event, BlobData):
                    if self._writer is not None:
                        self._writer.write(event.data)
                elif isinstance(event, BlobBegin):
                    self._begin(event)
                elif isinstance(event, BlobEnd):
                    events.append(self._end())
            if self._writer is not None and self._begun is not None and self._begun.digest is not None:
                # Reported after the whole batch, because most blobs are small and end in the batch in which they began.
                if not self._announced:
                    self._announced = True
                    events.append(Begun(self._begun.digest, self._begun.size, self._writer.open_reader()))
                events.append(Grown(self._writer.written))
        return events

    def finish(self) -> ArchiveIndex:
        """Return the archive's index after its last byte.  Raises `ArchiveError` if the archive is incomplete."""
        return self._reader.finish()

    def release(self) -> None:
        """Allow the eviction of the archive's blobs again.

        Call it in the reactor's thread, when no `feed` is under way.
        """
        releases, self._releases = self._releases, []
        for release in releases:
            release()

    def abort(self) -> None:
        """Drop the blob that is being written.  Blobs in the store stay, because each one was verified."""
        with self._lock:
            if self._writer is not None:
                self._writer.abort()
                self._writer = None

    def _begin(self, event: BlobBegin) -> None:
        self._begun = event
        self._announced = False
        if event.digest is not None:
            # Held before `has` is called: otherwise the blob could be evicted after `has`, and its bytes in the archive
            # would be skipped.
            self._releases.append(self._store.hold([event.digest]))
        # A blob that is in the store is neither hashed nor written again.
        if event.digest is None or not self._store.has(event.digest):
            self._writer = self._store.writer("sha256" if event.digest is None else event.digest.algorithm)

    def _end(self) -> Kept:
        begun, writer = self._begun, self._writer
        assert begun is not None  # `ArchiveReader` yields a BlobEnd only after a BlobBegin
        if writer is not None:
            digest = writer.commit(begun.digest, begun.size)
            self._writer = None
        else:
            assert begun.digest is not None
            digest = begun.digest
        kept = Kept(digest, begun.size, writer is None)
        self._begun = None
        if begun.digest is None:
            self._releases.append(self._store.hold([digest]))
        self._members[begun.name] = kept
        return kept
