"""The part of an export that runs in a worker thread: parse the archive, hash, write into the store."""

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
    """A blob has begun to arrive and goes on in the next batch.  Not told of blobs that the archive gives no digest."""

    digest: Digest
    size: int
    handle: IFileHandle


@frozen
class Grown:
    """The blob that has begun now has `total` bytes on disk."""

    total: int


@frozen
class Kept:
    """A blob is verified and in the store (it may have been there before: then no bytes were written)."""

    digest: Digest
    size: int
    was_here: bool


SpoolEvent = Begun | Grown | Kept


def close_handles(events: Iterable[SpoolEvent]) -> None:
    """Close the handles of `events` that no one takes."""
    for event in events:
        if isinstance(event, Begun):
            event.handle.close()


class ExportSpool:
    """Takes the bytes of a `docker save` and leaves verified blobs in the store.

    All methods do I/O and hash: call them in worker threads.  `abort` waits for a `feed` whose caller was cancelled.
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
        """What has been kept, by the name it has in the archive."""
        return self._members

    def feed(self, data: bytes) -> list[SpoolEvent]:
        """The next bytes of the archive.

        Raises `ArchiveError`, `DigestMismatch`, `StoreFull` or `StoreError`; call `abort` then.
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
                # Only now: most blobs are small and have ended in the batch in which they began.
                if not self._announced:
                    self._announced = True
                    events.append(Begun(self._begun.digest, self._begun.size, self._writer.open_reader()))
                events.append(Grown(self._writer.written))
        return events

    def finish(self) -> ArchiveIndex:
        """The archive has ended.  Raises `ArchiveError` unless it was whole."""
        return self._reader.finish()

    def release(self) -> None:
        """What was found or kept may be evicted again.  For the reactor's thread, when no `feed` is under way."""
        releases, self._releases = self._releases, []
        for release in releases:
            release()

    def abort(self) -> None:
        """Forget the blob that has begun.  What is in the store stays: each was verified by itself."""
        with self._lock:
            if self._writer is not None:
                self._writer.abort()
                self._writer = None

    def _begin(self, event: BlobBegin) -> None:
        self._begun = event
        self._announced = False
        if event.digest is not None:
            # Before it is looked for: else what is here could be evicted while the archive passes it by.
            self._releases.append(self._store.hold([event.digest]))
        # The layer of an image exported before is neither hashed nor written again.
        if event.digest is None or not self._store.has(event.digest):
            self._writer = self._store.writer("sha256" if event.digest is None else event.digest.algorithm)

    def _end(self) -> Kept:
        begun, writer = self._begun, self._writer
        assert begun is not None  # the reader's grammar: no end without a beginning
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
