"""Sending bytes at the consumer's pace."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from k3dreg.oci.errors import ContentGone
from k3dreg.streaming.file_handles import FileHandle
from k3dreg.streaming.file_producer import FileSending, Sender
from k3dreg.streaming.push_producer import ConsumerGone, ConsumerStalled
from k3dreg.streaming.workers import Workers
from tests.fakes.consumers import Reader
from tests.fakes.workers import ManualWorkers

DATA = bytes(range(256)) * 40  # 10240 bytes
CHUNK = 1000


class Source:
    """Reads of DATA, which the test answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.pending: list[Deferred[bytes]] = []
        self.cancelled = 0

    def read(self, offset: int, limit: int) -> Deferred[bytes]:
        self.asked.append((offset, limit))
        self.pending.append(Deferred(self._cancel))
        return self.pending[-1]

    def answer(self, data: bytes | None = None) -> None:
        offset, limit = self.asked[-1]
        self.pending.pop().callback(DATA[offset : offset + limit] if data is None else data)

    def _cancel(self, _: object) -> None:
        self.cancelled += 1


class SenderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.source = Source()

    def send(self, reader: Reader, start: int = 0, stop: int = len(DATA)) -> Deferred[None]:
        return Deferred.fromCoroutine(Sender(reader, self.clock, stall=300.0).run(self.source.read, start, stop, CHUNK))

    def test_a_range_arrives_exactly_and_the_producer_is_unregistered(self) -> None:
        reader = Reader()
        sending = self.send(reader, 500, 3600)
        while self.source.pending:
            self.source.answer()
        self.successResultOf(sending)
        self.assertEqual(reader.received, DATA[500:3600])
        self.assertEqual((reader.registered, reader.producer), (1, None))

    def test_nothing_is_sent_of_an_empty_range(self) -> None:
        reader = Reader()
        self.successResultOf(self.send(reader, 7, 7))
        self.assertEqual((reader.received, reader.registered), (b"", 0))

    def test_sources_may_give_less_than_asked_for(self) -> None:
        reader = Reader()
        sending = self.send(reader, 0, 10)
        self.source.answer(DATA[:3])
        self.source.answer(DATA[3:10])
        self.successResultOf(sending)
        self.assertEqual(self.source.asked, [(0, 10), (3, 7)])
        self.assertEqual(reader.received, DATA[:10])

    def test_a_paused_consumer_gets_nothing_and_one_piece_only_is_read_ahead(self) -> None:
        reader = Reader(appetite=CHUNK)
        sending = self.send(reader)
        for _ in range(2):
            self.source.answer()
        self.assertEqual(len(reader.received), CHUNK)
        self.assertEqual(len(self.source.asked), 2)  # one at the consumer, and one in hand
        reader.eat(CHUNK)
        self.assertEqual(len(reader.received), 2 * CHUNK)
        reader.eat(None)
        while self.source.pending:
            self.source.answer()
        self.successResultOf(sending)
        self.assertEqual(reader.received, DATA)

    def test_it_ends_when_the_consumer_has_taken_the_last_byte(self) -> None:
        reader = Reader(appetite=CHUNK)
        sending = self.send(reader, 0, CHUNK)
        self.source.answer()
        self.assertEqual(len(reader.received), CHUNK)
        self.assertNoResult(sending)
        reader.eat(1)
        self.successResultOf(sending)

    def test_a_consumer_that_leaves_ends_it_while_it_reads(self) -> None:
        reader = Reader()
        sending = self.send(reader)
        reader.leave()
        self.failureResultOf(sending, ConsumerGone)
        self.assertEqual((self.source.cancelled, reader.producer), (1, None))

    def test_a_consumer_that_leaves_ends_it_while_it_is_paused(self) -> None:
        reader = Reader(appetite=0)
        sending = self.send(reader)
        self.source.answer()
        reader.leave()
        self.failureResultOf(sending, ConsumerGone)
        self.assertEqual((reader.received, self.source.pending, self.clock.getDelayedCalls()), (b"", [], []))

    def test_a_consumer_that_takes_nothing_for_five_minutes_is_given_up(self) -> None:
        reader = Reader(appetite=0)
        sending = self.send(reader)
        self.source.answer()
        self.clock.advance(299)
        self.assertNoResult(sending)
        self.clock.advance(1)
        self.failureResultOf(sending, ConsumerStalled)
        self.assertIs(reader.producer, None)

    def test_a_consumer_that_takes_a_little_now_and_then_is_not_given_up(self) -> None:
        reader = Reader(appetite=0)
        sending = self.send(reader, 0, 3 * CHUNK)
        for _ in range(3):
            self.source.answer()
            self.clock.advance(299)
            reader.eat(CHUNK)
        reader.eat(None)
        self.successResultOf(sending)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_slow_source_is_not_the_consumers_fault(self) -> None:
        sending = self.send(Reader(), 0, 10)
        self.clock.advance(10_000)
        self.source.answer()
        self.successResultOf(sending)

    def test_a_failing_read_fails_it(self) -> None:
        reader = Reader()
        sending = self.send(reader)
        self.source.answer()
        self.source.pending.pop().errback(OSError("disk"))
        self.failureResultOf(sending, OSError)
        self.assertEqual((reader.received, reader.producer), (DATA[:CHUNK], None))

    def test_content_that_ends_too_early_is_gone(self) -> None:
        sending = self.send(Reader())
        self.source.answer(b"")
        self.failureResultOf(sending, ContentGone)

    def test_cancelling_stops_it_wherever_it_waits(self) -> None:
        for appetite in (None, 0):
            reader = Reader(appetite)
            sending = self.send(reader)
            if appetite == 0:
                self.source.answer()
            sending.cancel()
            self.failureResultOf(sending, CancelledError)
            self.assertEqual((reader.producer, self.clock.getDelayedCalls()), (None, []))
        self.assertEqual(self.source.cancelled, 1)

    def test_a_request_whose_connection_is_lost_already_is_not_written_to(self) -> None:
        reader = Reader()
        reader.channel = None  # type: ignore[attr-defined]  # as twisted.web's Request says it
        self.failureResultOf(self.send(reader), ConsumerGone)
        self.assertEqual(reader.registered, 0)


class FileHandleTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = self.mktemp()
        Path(self.path).write_bytes(DATA)

    def test_it_is_opened_when_it_is_first_read(self) -> None:
        handle = FileHandle(self.path)
        self.assertEqual((handle.read(3, 4), handle.read(len(DATA), 4), handle.size()), (DATA[3:7], b"", len(DATA)))
        handle.close()

    def test_a_file_that_is_not_there_is_gone_and_so_is_a_closed_one(self) -> None:
        handle = FileHandle(self.path)
        handle.close()
        handle.close()
        for closed in (handle, FileHandle(self.path + "x")):
            with self.assertRaises(ContentGone):
                closed.read(0, 1)

    def test_the_descriptor_outlives_a_read_that_is_under_way_and_no_longer(self) -> None:
        reader, writer = os.pipe()  # fstat on it works as on a file
        handle = FileHandle(descriptor=reader)
        with handle.use() as descriptor:
            handle.close()
            os.fstat(descriptor)
        with self.assertRaises(OSError):
            os.fstat(descriptor)
        os.close(writer)

    def test_closing_while_many_threads_read_never_reads_another_file(self) -> None:
        other = self.mktemp()
        Path(other).write_bytes(b"x" * len(DATA))
        wrong: list[bytes] = []

        def read(handle: FileHandle) -> None:
            try:
                while True:
                    data = handle.read(0, 64)
                    if data != DATA[:64]:
                        wrong.append(data)
            except ContentGone:
                pass

        for _ in range(30):
            handle = FileHandle(self.path)
            threads = [threading.Thread(target=read, args=(handle,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            handle.close()
            reopened = [os.open(other, os.O_RDONLY) for _ in range(8)]  # takes the descriptor's number, if it is free
            for thread in threads:
                thread.join()
            for descriptor in reopened:
                os.close(descriptor)
        self.assertEqual(wrong, [])

    def test_a_cancelled_sending_may_close_the_file_though_a_thread_still_reads_it(self) -> None:
        workers = ManualWorkers()
        handle = FileHandle(self.path)
        sending = Deferred.fromCoroutine(FileSending(workers, handle, Reader(), chunk=CHUNK).run(0, len(DATA)))
        sending.cancel()
        self.failureResultOf(sending, CancelledError)
        handle.close()
        workers.work()  # nobody hears that it failed
        self.assertEqual(self.flushLoggedErrors(), [])


class Collector(Protocol):
    """A client that reads as fast as it is let."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.done: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.done.callback(bytes(self.received))


class RealSocketTests(TestCase):
    """Over loopback TCP, with the sizes that are really used."""

    def setUp(self) -> None:
        self.path = self.mktemp()
        self.data = os.urandom(3_000_001)
        Path(self.path).write_bytes(self.data)
        self.workers = Workers(reactor)
        self.workers.start()
        self.addCleanup(self.workers.stop)
        self.ended: list[object] = []
        path, workers, ended = self.path, self.workers, self.ended

        class Server(Protocol):
            def connectionMade(self) -> None:
                Deferred.fromCoroutine(self.serve()).addBoth(ended.append)

            async def serve(self) -> None:
                handle = FileHandle(path)
                try:
                    await FileSending(workers, handle, self.transport).run(0, 3_000_001)  # type: ignore[arg-type]
                finally:
                    handle.close()
                    assert self.transport is not None
                    self.transport.loseConnection()

        # The reactor's interfaces leave open what a port has: it is a plain TCP port here.
        self.port: Any = reactor.listenTCP(0, cast(Any, Factory.forProtocol(Server)), interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)

    def connect(self) -> Deferred[Collector]:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        return cast("Deferred[Collector]", connectProtocol(endpoint, Collector()))

    async def test_eight_clients_at_once_get_every_byte(self) -> None:
        clients = await gatherResults([self.connect() for _ in range(8)])
        bodies = await gatherResults([client.done for client in clients])
        self.assertEqual([body == self.data for body in bodies], [True] * 8)
        self.assertEqual(self.ended, [None] * 8)

    async def test_a_client_that_leaves_in_the_middle_ends_its_own_sending(self) -> None:
        client, other = await gatherResults([self.connect(), self.connect()])
        cast(ITCPTransport, client.transport).abortConnection()
        await client.done
        self.assertEqual(await other.done, self.data)
        while len(self.ended) < 2:
            settled: Deferred[None] = Deferred()
            reactor.callLater(0, settled.callback, None)
            await settled
        failures = [result for result in self.ended if isinstance(result, Failure)]
        self.assertEqual([failure.type for failure in failures], [ConsumerGone])
