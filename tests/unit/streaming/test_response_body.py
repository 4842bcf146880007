"""Tests of k3dreg.streaming.response_body."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from k3dreg.docker.endpoint import EngineAddress, make_agent
from k3dreg.oci.errors import EngineError, EngineSilent, EngineUnavailable
from k3dreg.streaming.byte_stream import BATCH, MOST_UNREAD
from k3dreg.streaming.response_body import ResponseBody, read_whole

_CHUNK = bytes(32 * 1024)


@implementer(IPushProducer)
class _Transport:
    """A producer of as much as it may, as an engine with a large archive is."""

    def __init__(self) -> None:
        self.paused = False
        self.lost = 0

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def stopProducing(self) -> None:
        self.lost += 1

    def loseConnection(self) -> None:
        self.lost += 1


class _Response:
    """The end of an HTTP response that a body is read from; `early` is what came with the head."""

    def __init__(self, early: list[bytes]) -> None:
        self.headers = Headers()
        self.transport = _Transport()
        self.protocol: Any = None
        self._early = early

    def deliverBody(self, protocol: Protocol) -> None:
        self.protocol = protocol
        protocol.makeConnection(self.transport)
        for data in self._early:
            protocol.dataReceived(data)
        self.transport.resumeProducing()  # as Twisted does, whatever the protocol said

    def produce(self, chunks: int) -> int:
        """Send up to so many chunks of 32 KiB, until paused; how many were sent."""
        for sent in range(chunks):
            if self.transport.paused:
                return sent
            self.protocol.dataReceived(_CHUNK)
        return chunks

    def end(self, reason: Exception | None = None) -> None:
        self.protocol.connectionLost(Failure(reason or ResponseDone()))


class _BodyCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.broken = 0

    def body(self, *early: bytes, kind: str = "") -> tuple[_Response, ResponseBody]:
        response = _Response(list(early))
        if kind:
            response.headers.setRawHeaders("Content-Type", [kind])
        body = ResponseBody(
            response,  # type: ignore[arg-type]
            self.clock,
            silence=10,
            what="a test",
            broke=self._broke,
        )
        self.addCleanup(body.close)
        return response, body

    def _broke(self) -> None:
        self.broken += 1

    def read(self, body: ResponseBody) -> Deferred[bytes]:
        return Deferred.fromCoroutine(body.read())


class Reading(_BodyCase):
    def test_what_arrived_is_read_at_once_and_joined(self) -> None:
        _, body = self.body(b"one ", b"two")
        self.assertEqual(self.successResultOf(self.read(body)), b"one two")

    def test_a_reader_waits_for_the_next_bytes(self) -> None:
        response, body = self.body()
        waiting = self.read(body)
        self.assertNoResult(waiting)
        response.protocol.dataReceived(b"here")
        self.assertEqual(self.successResultOf(waiting), b"here")

    def test_a_reader_that_wants_many_bytes_is_woken_when_they_are_here_or_at_the_end(self) -> None:
        response, body = self.body()
        reading = Deferred.fromCoroutine(body.read(8))
        response.protocol.dataReceived(b"hello")
        self.assertNoResult(reading)
        response.protocol.dataReceived(b"world")
        self.assertEqual(self.successResultOf(reading), b"helloworld")
        response.protocol.dataReceived(b"end")
        last = Deferred.fromCoroutine(body.read(8))
        self.assertNoResult(last)
        response.end()
        self.assertEqual(self.successResultOf(last), b"end")

    def test_the_end_is_empty_however_often_it_is_read(self) -> None:
        response, body = self.body(b"all")
        response.end()
        self.assertEqual([self.successResultOf(self.read(body)) for _ in range(3)], [b"all", b"", b""])

    def test_a_reader_that_waits_learns_of_the_end(self) -> None:
        response, body = self.body()
        waiting = self.read(body)
        response.end()
        self.assertEqual(self.successResultOf(waiting), b"")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_read_gives_no_more_than_about_a_batch(self) -> None:
        response, body = self.body()
        response.produce(60)
        self.assertEqual(len(self.successResultOf(self.read(body))), BATCH)

    def test_two_readers_at_a_time_are_a_mistake(self) -> None:
        _, body = self.body()
        first = self.read(body)
        self.failureResultOf(self.read(body), RuntimeError)
        self.assertNoResult(first)

    def test_a_small_body_is_read_whole(self) -> None:
        response, body = self.body(b"abc")
        whole = Deferred.fromCoroutine(read_whole(body, 5))
        response.protocol.dataReceived(b"de")
        response.end()
        self.assertEqual(self.successResultOf(whole), b"abcde")

    def test_a_body_that_should_be_small_and_is_not_is_closed(self) -> None:
        response, body = self.body(b"abcdef")
        self.failureResultOf(Deferred.fromCoroutine(read_whole(body, 5)), EngineError)
        self.assertEqual(response.transport.lost, 1)


class BackPressure(_BodyCase):
    def test_a_reader_that_does_not_read_stops_the_producer(self) -> None:
        response, _body = self.body()
        sent = response.produce(100_000) * len(_CHUNK)
        self.assertTrue(response.transport.paused)
        self.assertLessEqual(sent, MOST_UNREAD + len(_CHUNK))
        self.clock.advance(1000)
        self.assertEqual(response.produce(1), 0)

    def test_a_reader_that_goes_on_lets_the_producer_go_on(self) -> None:
        response, body = self.body()
        sent = read = 0
        for _ in range(50):
            sent += response.produce(100_000) * len(_CHUNK)
            read += len(self.successResultOf(self.read(body)))
            self.assertLessEqual(sent - read, MOST_UNREAD + len(_CHUNK))
        self.assertGreater(read, 40 * BATCH)

    def test_a_pause_made_while_buffered_bytes_were_delivered_is_made_again(self) -> None:
        response, _body = self.body(*[_CHUNK] * 80)
        self.assertLessEqual(response.produce(100), 1)


@implementer(IPushProducer)
class _Torrent(Resource):
    """An answer without end, at the pace of the connection.  `sent` in bytes."""

    isLeaf = True  # noqa: N815

    def render_GET(self, request: Request) -> int:
        self.request = request
        self.sent = 0
        self.paused = False
        request.registerProducer(self, True)
        self.resumeProducing()
        return NOT_DONE_YET

    def resumeProducing(self) -> None:
        self.paused = False
        while not self.paused:
            self.request.write(_CHUNK)
            self.sent += len(_CHUNK)

    def pauseProducing(self) -> None:
        self.paused = True

    def stopProducing(self) -> None:
        self.paused = True


class BackPressureOnASocket(TestCase):
    # What lies between the two ends: buffers of the kernel and of Twisted's transport, and the chunks in flight.
    between = 1024 * 1024

    async def setUp(self) -> None:  # type: ignore[override]
        self.torrent = _Torrent()
        path = self.mktemp()
        port = await UNIXServerEndpoint(reactor, path).listen(Site(self.torrent))
        self.addCleanup(port.stopListening)
        response = await make_agent(reactor, EngineAddress(path=path)).request(b"GET", b"http://engine/")
        clock: Any = reactor
        self.body = ResponseBody(response, clock, silence=10, what="a torrent")
        self.addCleanup(self.turns)
        self.addCleanup(self.body.close)

    async def turns(self) -> None:
        """Let the reactor do all that it can do now."""
        for _ in range(200):
            await deferLater(reactor, 0)

    async def test_the_sender_is_stopped_until_the_reader_goes_on(self) -> None:
        read = 0
        for _ in range(5):
            await self.turns()
            self.assertTrue(self.torrent.paused)
            self.assertLessEqual(self.torrent.sent - read, MOST_UNREAD + self.between)
            self.assertGreaterEqual(self.torrent.sent - read, MOST_UNREAD)
            for _ in range(8):
                read += len(await self.body.read())


class Ends(_BodyCase):
    def test_a_lost_connection_is_told_after_what_had_arrived(self) -> None:
        response, body = self.body(b"part")
        response.end(ResponseFailed([]))
        self.assertEqual(self.successResultOf(self.read(body)), b"part")
        error = self.failureResultOf(self.read(body), EngineUnavailable).value
        self.assertIn("in the middle of a test", str(error))
        self.assertEqual(self.broken, 1)

    def test_a_body_of_unknown_length_is_not_taken_for_whole(self) -> None:
        response, body = self.body()
        response.end(PotentialDataLoss())
        self.failureResultOf(self.read(body), EngineUnavailable)

    def test_the_output_of_a_command_ends_with_its_connection(self) -> None:
        for kind in ("application/vnd.docker.raw-stream", "application/vnd.docker.multiplexed-stream"):
            response, body = self.body(kind=kind)
            response.end(PotentialDataLoss())
            self.assertEqual(self.successResultOf(self.read(body)), b"")

    def test_a_whole_body_does_not_count_as_broken(self) -> None:
        response, _body = self.body()
        response.end()
        self.assertEqual(self.broken, 0)

    def test_closing_loses_the_connection_once_and_drops_what_was_there(self) -> None:
        response, body = self.body(b"unread")
        body.close()
        body.close()
        self.assertEqual(response.transport.lost, 1)
        self.failureResultOf(self.read(body), CancelledError)
        response.protocol.dataReceived(b"late")
        response.end(ResponseFailed([]))
        self.failureResultOf(self.read(body), CancelledError)
        self.assertEqual(self.broken, 0)

    def test_closing_cancels_the_reader(self) -> None:
        _, body = self.body()
        waiting = self.read(body)
        body.close()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelling_the_reader_closes(self) -> None:
        response, body = self.body()
        waiting = self.read(body)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual(response.transport.lost, 1)

    def test_closing_after_the_end_does_not_touch_the_connection(self) -> None:
        response, body = self.body(b"rest")
        response.end()
        body.close()
        self.assertEqual(response.transport.lost, 0)
        self.failureResultOf(self.read(body), CancelledError)


class Silence(_BodyCase):
    def test_a_reader_that_waits_too_long_learns_that_the_engine_is_silent(self) -> None:
        response, body = self.body()
        waiting = self.read(body)
        self.clock.advance(9.9)
        self.assertNoResult(waiting)
        self.clock.advance(0.1)
        self.failureResultOf(waiting, EngineSilent)
        self.assertEqual(response.transport.lost, 1)
        self.assertEqual(self.broken, 1)

    def test_each_byte_begins_the_time_anew(self) -> None:
        response, body = self.body()
        for _ in range(5):
            waiting = self.read(body)
            self.clock.advance(9)
            response.protocol.dataReceived(b"x")
            self.successResultOf(waiting)
        waiting = self.read(body)
        self.clock.advance(9.9)
        self.assertNoResult(waiting)
        self.clock.advance(0.2)
        self.failureResultOf(waiting, EngineSilent)

    def test_no_time_counts_while_nobody_reads(self) -> None:
        response, body = self.body(b"x")
        self.successResultOf(self.read(body))
        self.clock.advance(1000)
        waiting = self.read(body)
        self.clock.advance(9)
        response.protocol.dataReceived(b"y")
        self.assertEqual(self.successResultOf(waiting), b"y")
