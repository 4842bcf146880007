"""Copy a blob into a store."""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from zope.interface import implementer

from k3dreg.store.interfaces import IBlobWriter
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.outcome import Outcome
from k3dreg.streaming.workers import Workers

# Unwritten bytes above which the producer is paused.  As in `streaming.byte_stream`, a worker thread writes one batch
# while the next one arrives.
_HIGH_WATER = 2 * 1024 * 1024


@implementer(IConsumer)
class _WriterConsumer:
    """A consumer that passes its bytes in order to a blob writer in worker threads, and pauses its producer."""

    def __init__(self, workers: Workers, writer: IBlobWriter) -> None:
        self._workers = workers
        self._writer = writer
        self._chunks: list[bytes] = []
        self._unwritten = 0
        self._producer: IPushProducer | None = None
        self._paused = False
        self._writing = False
        self._done: Outcome[None] | None = None
        self._error: BaseException | None = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        if not streaming:
            raise RuntimeError("blobs are sent by push producers")
        self._producer = cast(IPushProducer, producer)
        if self._error is not None:
            self._producer.stopProducing()

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        self._chunks.append(data)
        self._unwritten += len(data)
        if not self._writing and self._error is None:
            self._writing = True
            Deferred.fromCoroutine(self._drain())
        if self._unwritten > _HIGH_WATER and self._producer is not None and not self._paused:
            self._paused = True
            self._producer.pauseProducing()

    async def finish(self) -> None:
        """Wait until all bytes are written.  Raises what the writer raised."""
        if self._writing:
            self._done = Outcome()
            await self._done.wait()
        if self._error is not None:
            raise self._error

    @property
    def error(self) -> BaseException | None:
        """Return what the writer raised, or None."""
        return self._error

    async def _drain(self) -> None:
        try:
            while self._chunks:
                data = b"".join(self._chunks)
                self._chunks.clear()
                await self._workers.run(self._writer.write, data)
                self._unwritten -= len(data)
                if self._paused and self._unwritten <= _HIGH_WATER // 2:
                    self._paused = False
                    if self._producer is not None:
                        self._producer.resumeProducing()
        except Exception as error:  # noqa: BLE001  (`finish` raises it)
            self._error = error
            self._chunks.clear()
            if self._producer is not None:
                self._producer.stopProducing()
        finally:
            self._writing = False
            if self._done is not None:
                self._done.succeed(None)


async def keep(workers: Workers, blob: IBlob, writer: IBlobWriter) -> None:
    """Write all of `blob` to `writer` and commit it.

    Raises what `blob.send` and the writer raise.  After an error, and on cancelling, the writer is aborted.
    """
    consumer = _WriterConsumer(workers, writer)
    try:
        try:
            await blob.send(consumer, 0, blob.size)
        except Exception:
            if consumer.error is not None:  # the writer's error stopped the sending
                raise consumer.error from None
            raise
        await consumer.finish()
        await workers.run(writer.commit, blob.digest, blob.size)
    finally:
        workers.clean_up(writer.abort)
