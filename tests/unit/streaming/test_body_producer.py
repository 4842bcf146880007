"""A request body of documents and blobs."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentGone
from k3dreg.streaming.body_producer import Pieces
from k3dreg.streaming.memory_blob import MemoryBlob


class SlowBlob:
    """Registers a producer, and writes when the test says so."""

    def __init__(self) -> None:
        self.digest, self.size = Digest.of(b"abc"), 3
        self.calls: list[str] = []
        self.ready: Deferred[None] = Deferred(lambda _: self.calls.append("cancelled"))

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        consumer.registerProducer(self, True)  # type: ignore[arg-type]
        try:
            await self.ready
            consumer.write(b"abc")
        finally:
            consumer.unregisterProducer()

    async def read(self) -> bytes:
        return b"abc"

    def pauseProducing(self) -> None:
        self.calls.append("paused")

    def resumeProducing(self) -> None:
        self.calls.append("resumed")


class PiecesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.consumer, self.blob = StringTransport(), SlowBlob()
        self.body = Pieces([b"head ", self.blob, b" tail"])

    def test_the_pieces_are_sent_in_order_and_are_as_long_as_was_said(self) -> None:
        written = self.body.startProducing(self.consumer)
        self.assertNoResult(written)
        self.blob.ready.callback(None)
        self.successResultOf(written)
        self.assertEqual(self.consumer.value(), b"head abc tail")
        self.assertEqual(self.body.length, 13)

    def test_the_connection_s_pace_is_the_blob_s(self) -> None:
        self.body.startProducing(self.consumer)
        self.body.pauseProducing()
        self.body.resumeProducing()
        self.assertEqual(self.blob.calls, ["paused", "resumed"])

    def test_a_pause_between_two_pieces_counts_for_the_next(self) -> None:
        body = Pieces([self.blob, second := SlowBlob()])
        written = body.startProducing(self.consumer)
        body.pauseProducing()
        self.blob.ready.callback(None)
        self.assertEqual(second.calls, ["paused"])
        self.assertNoResult(written)

    def test_a_blob_that_breaks_breaks_the_request(self) -> None:
        written = self.body.startProducing(self.consumer)
        self.blob.ready.errback(ContentGone("gone"))
        self.failureResultOf(written, ContentGone)
        self.assertEqual(self.consumer.value(), b"head ")

    def test_a_lost_connection_ends_the_sending_and_fires_nothing(self) -> None:
        written = self.body.startProducing(self.consumer)
        self.body.stopProducing()
        self.assertEqual(self.blob.calls, ["cancelled"])
        self.assertNoResult(written)
        self.body.pauseProducing()
        self.body.resumeProducing()

    def test_small_blobs_are_written_at_once(self) -> None:
        written = Pieces([MemoryBlob(Digest.of(b"x"), b"x")]).startProducing(self.consumer)
        self.successResultOf(written)
        self.assertEqual(self.consumer.value(), b"x")
