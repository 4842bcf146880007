"""A blob that arrives: read along while it does, verified, and kept if the disk can be written."""

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

# Bytes of a blob that cannot be kept that wait in memory for its readers before its producer waits, too.  A producer
# adds what it writes at a time: up to 8 MiB of a layer's files.
WINDOW = 4 * 1024 * 1024
# Seconds for which a blob that cannot be kept waits for a reader.  One has asked for it, and begins at once.
READER_WAIT = 10.0


class Arrival:
    """One blob on its way: its producer writes with `writer` and calls `advance`, its readers have `blob`.

    Where the disk cannot be written the bytes go to the readers alone, and the producer waits for them.
    """

    def __init__(self, workers: Workers, writer: IPassingWriter, blob: ArrivingBlob) -> None:
        self.writer = writer
        self.blob = blob
        self._workers = workers
        self._told = False

    @classmethod
    async def begin(cls, workers: Workers, writer: IPassingWriter, digest: Digest, size: int) -> Arrival:
        """Let what `writer` writes be read.  The writer stays the caller's to abort."""
        handle = await workers.acquire(writer.open_reader, lambda handle: handle.close())
        return cls(workers, writer, ArrivingBlob(workers, digest, size, handle))

    async def advance(self) -> None:
        """Tell the readers of what was written since; wait for them if it cannot be kept.

        Raises the `StoreError` of the writer when it cannot be kept and there is no reader.
        """
        self.blob.advance(self.writer.written)
        await self._wait_for_readers(WINDOW)

    async def verify(self) -> StoreError | None:
        """Verify and keep the blob; returns why it is not kept.

        Its readers lack the last byte until the caller tells `blob` that it has finished.
        Raises `DigestMismatch`, and as `advance`.
        """
        await self._workers.run(self.writer.commit, self.blob.digest, self.blob.size)
        # Those who were given it get it now, or never.
        await self._wait_for_readers(1)
        return self.writer.unkept

    def finish(self, store: IBlobStore) -> IBlob | None:
        """Let the readers have the last byte; returns the blob in `store`."""
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
