"""Tests of k3dreg.docker.bulk_client: Twisted's client with another decoder of chunks."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web._newclient import Request
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from k3dreg.docker.bulk_client import ClientFactory
from k3dreg.streaming.response_body import ResponseBody, read_whole

_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class _Transport(StringTransport):
    bufferSize = 64 * 1024  # noqa: N815  (Twisted's name for it)


class FastClientTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.idle: list[Any] = []
        self.client = ClientFactory(self.idle.append, ()).buildProtocol(None)
        self.transport = _Transport()
        self.client.makeConnection(self.transport)

    def ask(self) -> Deferred[IResponse]:
        return self.client.request(Request(b"GET", b"/", Headers({"Host": ["engine"]}), None, persistent=True))

    def answered(self) -> ResponseBody:
        asked = self.ask()
        self.client.dataReceived(_HEAD)
        body = ResponseBody(self.successResultOf(asked), Clock(), silence=1.0, what="a test")
        self.addCleanup(body.close)
        return body

    def test_more_is_taken_from_the_socket_at_a_time(self) -> None:
        self.assertEqual(self.transport.bufferSize, 256 * 1024)

    def test_chunks_become_a_body_and_the_connection_is_used_again(self) -> None:
        for text in (b"hello, world", b"again"):
            body = self.answered()
            for chunk in (text[:3], text[3:]):
                for byte in b"%x\r\n%s\r\n" % (len(chunk), chunk):
                    self.client.dataReceived(bytes([byte]))
            reading = Deferred.fromCoroutine(read_whole(body, 100))
            self.assertNoResult(reading)
            self.client.dataReceived(b"0\r\n\r\n")
            self.assertEqual(self.successResultOf(reading), text)
        self.assertEqual(len(self.idle), 2)

    def test_our_decoder_is_the_one_in_use(self) -> None:
        body = self.answered()
        self.client.dataReceived(b"5\r\nhello\r\n")
        self.assertIsInstance(body._chunks[0], memoryview)

    def test_a_body_that_breaks_off_or_is_none_fails(self) -> None:
        for data, ends in ((b"5\r\nhel", True), (b"hello\r\n", False), (b"5\r\nhello!\r\n", False)):
            self.setUp()
            body = self.answered()
            self.client.dataReceived(data)
            if ends:
                self.client.connectionLost(Failure(ConnectionLost()))
            else:
                self.assertTrue(self.transport.disconnecting)
            reading = Deferred.fromCoroutine(read_whole(body, 100))
            self.assertIn("was lost in the middle of a test", str(self.failureResultOf(reading).value))

    def test_a_reader_that_wants_many_bytes_is_woken_when_they_are_here_or_at_the_end(self) -> None:
        body = self.answered()
        reading = Deferred.fromCoroutine(body.read(8))
        self.client.dataReceived(b"5\r\nhello\r\n")
        self.assertNoResult(reading)
        self.client.dataReceived(b"5\r\nworld\r\n")
        self.assertEqual(self.successResultOf(reading), b"helloworld")
        self.client.dataReceived(b"3\r\nend\r\n")
        last = Deferred.fromCoroutine(body.read(8))
        self.assertNoResult(last)
        self.client.dataReceived(b"0\r\n\r\n")
        self.assertEqual(self.successResultOf(last), b"end")
