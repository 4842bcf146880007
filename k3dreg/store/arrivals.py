"""Serve a blob while it arrives, verify it, and keep it if the disk can be written."""

from __future__ import annotations

from twisted.internet.defer import TimeoutError as TimedOut

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import StoreError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.interfaces import IBlobStore, IPassingWriter
from k3dreg.streaming.arriving_blob import ArrivingBlob
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.workers import Workers

log = make_logger()

# Bytes of a blob that cannot be kept that may be in memory unread before its producer waits for the readers.  The
# producer's last write comes on top: up to 8 MiB of a layer's files.
WINDOW = 4 * 1024 * 1024
# Seconds for which a blob that cannot be kept waits for a reader.  The client that asked for it begins at once.
READER_WAIT = 10.0


class Arrival:
    """One blob that arrives.  Its producer writes with `writer` and calls `advance`; its readers use `blob`.

    If the disk cannot be written, the bytes go to the readers only, and the producer waits for them.  After the last
    byte the producer calls `verify` and `finish`; after an error, it calls `blob.fail` and aborts `writer`.
    """

    def __init__(self, workers: Workers, writer: IPassingWriter, blob: ArrivingBlob) -> None:
        self.writer = writer
        self.blob = blob
        self._workers = workers
        self._told = False

    @classmethod
    async def begin(cls, workers: Workers, writer: IPassingWriter, digest: Digest, size: int) -> Arrival:
        """Return an arrival that lets readers follow `writer`.  The caller still aborts `writer` after an error."""
        handle = await workers.acquire(writer.open_reader, lambda handle: handle.close())
        return cls(workers, writer, ArrivingBlob(workers, digest, size, handle))

    async def advance(self) -> None:
        """Tell the readers how many bytes have been written; wait for the readers if the blob cannot be kept.

        Raises the writer's `StoreError` when the blob cannot be kept and has no reader for `READER_WAIT` seconds.
        """
        self.blob.advance(self.writer.written)
        await self._wait_for_readers(WINDOW)

    async def verify(self) -> StoreError | None:
        """Verify and keep the blob.  Return the error that prevented keeping it, or None.

        The readers do not get the last byte before the caller calls `finish`.  Raises `DigestMismatch`, and as
        `advance`.
        """
        await self._workers.run(self.writer.commit, self.blob.digest, self.blob.size)
        # Bytes that are only in memory are lost after `finish`, so the readers must have them before.
        await self._wait_for_readers(1)
        return self.writer.unkept

    def finish(self, store: IBlobStore) -> IBlob | None:
        """Release the last byte to the readers.  Return the blob in `store`, or None if it was not kept."""
        kept = store.get(self.blob.digest)
        self.blob.finish(kept)
        return kept

    async def _wait_for_readers(self, most: int) -> None:
        error = self.writer.unkept
        if error is None:
            return
        if not self._told:
            self._told = True
            log.warn("{digest} is sent without being kept: {error}", digest=self.blob.digest, error=error)
        try:
            read = await self.blob.drop_read(most, READER_WAIT)
        except TimedOut:
            raise error from None
        self.writer.discard_before(read)
