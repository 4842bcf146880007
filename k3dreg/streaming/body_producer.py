"""A request body put together from documents and blobs."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from k3dreg.streaming.content import IBlob


@implementer(IBodyProducer)
class Pieces:
    """A request body of bytes and blobs, sent one after the other at the pace of the connection."""

    def __init__(self, pieces: Sequence[bytes | IBlob]) -> None:
        self.length = sum(len(piece) if isinstance(piece, bytes) else piece.size for piece in pieces)
        self._pieces = pieces
        self._throttle: _Throttle | None = None
        self._sending: Deferred[None] | None = None
        self._written: Deferred[None] | None = None

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Send all pieces to `consumer`; fires when the last byte has been written.

        Fails as a blob's `send` does; Twisted then aborts the request.
        """
        self._throttle = _Throttle(consumer)
        written: Deferred[None] = Deferred()
        self._written = written
        self._sending = Deferred.fromCoroutine(self._send(self._throttle))
        self._sending.addBoth(self._end)
        return written

    def pauseProducing(self) -> None:
        if self._throttle is not None:
            self._throttle.pause()

    def resumeProducing(self) -> None:
        if self._throttle is not None:
            self._throttle.resume()

    def stopProducing(self) -> None:
        """Stop sending: the connection is lost, or the request was cancelled.  The Deferred then never fires."""
        self._written = None
        if self._sending is not None:
            self._sending.cancel()

    def _end(self, result: Failure | None) -> None:
        written, self._written = self._written, None
        if written is not None:
            written.callback(result)  # a Failure errbacks

    async def _send(self, throttle: _Throttle) -> None:
        for piece in self._pieces:
            if isinstance(piece, bytes):
                throttle.write(piece)
            else:
                await piece.send(throttle, 0, piece.size)


@implementer(IConsumer)
class _Throttle:
    """The consumer that blobs register their producers with; the connection only knows `Pieces` as its producer."""

    def __init__(self, consumer: IConsumer) -> None:
        self._consumer = consumer
        self._producer: IPushProducer | None = None
        self._paused = False

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        assert streaming, "blobs push"
        self._producer = producer  # type: ignore[assignment]  # streaming ones are IPushProducers
        if self._paused:
            self.pause()

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        self._consumer.write(data)

    def pause(self) -> None:
        self._paused = True
        if self._producer is not None:
            self._producer.pauseProducing()

    def resume(self) -> None:
        self._paused = False
        if self._producer is not None:
            self._producer.resumeProducing()
