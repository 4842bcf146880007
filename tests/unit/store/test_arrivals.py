"""Each end of an arrival: done, failed, cancelled, left, and a disk that is full."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, DigestMismatch, EngineUnavailable, FileAbsent, StoreError, StoreFull
from k3dreg.store.arrivals import READER_WAIT, WINDOW, Arrival, Arrivals
from k3dreg.store.blob_files import BlobFiles
from k3dreg.store.blob_store import SETTLING
from k3dreg.store.unkept_bytes import UnkeptBytes
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.push_producer import ConsumerGone
from tests.fakes.consumers import Reader
from tests.fakes.stores import StoreTestCase, fill_disk_after, refuse_writes
from tests.fakes.workers import InlineWorkers

MiB = 1024 * 1024
DATA = os.urandom(100_000)
DIGEST = Digest.of(DATA)


class Source:
    """Gives `data` in pieces; it waits for `held` before `begin`, and for `half` in the middle."""

    def __init__(self, data: bytes = DATA, size: int | None = None) -> None:
        self.data, self.size = data, len(data) if size is None else size
        self.begins = True
        self.held: Deferred[None] | None = None
        self.half: Deferred[None] | None = None
        self.error: Exception | None = None
        self.fills = 0
        self.piece = max(1, len(data) // 10)
        self.given = 0

    async def fill(self, arrival: Arrival) -> None:
        self.fills += 1
        if self.held is not None:
            await self.held
        if self.begins:
            await arrival.begin(self.size)
        for at in range(0, len(self.data), self.piece):
            self.given = at + self.piece
            await arrival.write(self.data[at : at + self.piece])
            if at >= len(self.data) // 2:
                if self.half is not None:
                    await self.half
                if self.error is not None:
                    raise self.error


class ArrivalsTestCase(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.arrivals = Arrivals(self.store, InlineWorkers(self.clock))
        self.addCleanup(lambda: self.successResultOf(self.arrivals.shutdown()))
        self.source = Source()

    def ask(self, ask: Callable[..., Awaitable[IBlob]], *more: object) -> Deferred[Any]:
        return Deferred.fromCoroutine(cast(Any, ask(DIGEST, self.source.fill, *more)))

    def opened(self) -> Any:
        return self.successResultOf(self.ask(self.arrivals.open))

    def send(self, blob: IBlob, reader: Reader, start: int = 0) -> Deferred[None]:
        return Deferred.fromCoroutine(cast(Any, blob.send(reader, start, blob.size)))

    def read(self, blob: IBlob) -> bytes:
        reader = Reader()
        self.successResultOf(self.send(blob, reader))
        return reader.received


class DoneTests(ArrivalsTestCase):
    def test_a_blob_is_sent_while_it_arrives_but_for_its_last_byte_before_it_is_verified(self) -> None:
        self.source.half = Deferred()
        blob, reader = self.opened(), Reader()
        sending = self.send(blob, reader)
        self.assertEqual(reader.received, DATA[: len(reader.received)])
        self.assertGreater(len(reader.received), len(DATA) // 2)
        self.assertFalse(self.store.has(DIGEST))
        self.source.half.callback(None)
        self.successResultOf(sending)
        self.assertEqual(reader.received, DATA)
        self.assertTrue(self.store.has(DIGEST))
        self.assertEqual(self.staged(), [])

    def test_all_who_want_it_at_once_share_it_and_later_ones_have_it_from_the_store(self) -> None:
        self.source.half = Deferred()
        blobs = [self.opened() for _ in range(3)]
        self.assertIs(self.arrivals.find(DIGEST), blobs[0])
        readers = [Reader() for _ in blobs]
        sendings = [self.send(blob, reader, at) for at, (blob, reader) in enumerate(zip(blobs, readers, strict=True))]
        self.source.half.callback(None)
        for at, (sending, reader) in enumerate(zip(sendings, readers, strict=True)):
            self.successResultOf(sending)
            self.assertEqual(reader.received, DATA[at:])
        self.assertEqual(self.read(self.opened()), DATA)
        self.assertEqual(self.source.fills, 1)
        found = self.arrivals.find(DIGEST)
        assert found is not None
        self.assertEqual(self.read(found), DATA)

    def test_it_is_not_shared_by_those_who_may_not_read_it(self) -> None:
        half: Deferred[None] = Deferred()
        self.source.half = half
        mine, other = self.ask(self.arrivals.open, "mine"), self.ask(self.arrivals.open, "other")
        self.assertEqual(self.source.fills, 2)
        self.assertIsNone(self.arrivals.find(DIGEST))
        half.callback(None)
        for opened in (mine, other):
            self.assertEqual(self.read(self.successResultOf(opened)), DATA)

    def test_a_blob_whose_size_is_not_known_is_opened_when_it_is_whole(self) -> None:
        self.source.begins, self.source.half = False, Deferred()
        opening = self.ask(self.arrivals.open)
        self.assertNoResult(opening)
        self.assertIsNone(self.arrivals.find(DIGEST))
        self.source.half.callback(None)
        self.assertEqual(self.read(self.successResultOf(opening)), DATA)

    def test_an_empty_blob_is_a_blob(self) -> None:
        empty = Digest.of(b"")
        self.assertEqual(self.read(self.result(self.arrivals.open(empty, Source(b"").fill))), b"")

    def test_fetched_is_what_is_in_the_store(self) -> None:
        self.source.half = Deferred()
        blob, fetching = self.opened(), self.ask(self.arrivals.fetch)
        self.assertNoResult(fetching)
        self.source.half.callback(None)
        self.assertEqual(self.read(self.successResultOf(fetching)), DATA)
        self.assertEqual(self.read(blob), DATA)
        self.assertEqual((self.source.fills, self.successResultOf(self.ask(self.arrivals.fetch)).size), (1, len(DATA)))

    def test_a_reader_has_all_of_a_blob_that_no_cache_has_room_for(self) -> None:
        self.store.set_limit(0)
        self.source.half = Deferred()
        slow = Reader(1)
        sending = self.send(self.opened(), slow)
        self.source.half.callback(None)
        self.clock.advance(SETTLING)
        self.assertFalse(self.store.has(DIGEST))
        slow.eat(None)
        self.successResultOf(sending)
        self.assertEqual(slow.received, DATA)

    def test_one_blob_of_many_in_a_stream_may_be_joined(self) -> None:
        self.source.half = Deferred()
        bringing = Deferred.fromCoroutine(self.arrivals.bring(DIGEST, self.source.fill))
        blob, reader = self.opened(), Reader()
        sending = self.send(blob, reader)
        self.assertGreater(len(reader.received), 0)
        self.source.half.callback(None)
        self.assertEqual(self.successResultOf(bringing).digest, DIGEST)
        self.successResultOf(sending)
        self.assertEqual((reader.received, self.source.fills), (DATA, 1))

    def test_a_blob_in_a_stream_may_have_a_digest_that_is_not_known(self) -> None:
        self.source.begins = False
        blob = self.result(self.arrivals.bring(None, self.source.fill))
        self.assertEqual((blob.digest, self.read(blob)), (DIGEST, DATA))


class FailedTests(ArrivalsTestCase):
    def test_an_error_before_the_beginning_is_the_callers(self) -> None:
        self.source.held = Deferred()
        asked = [self.ask(ask) for ask in (self.arrivals.open, self.arrivals.open, self.arrivals.fetch)]
        self.source.held.errback(FileAbsent("it is not here"))
        for each in asked:
            self.failureResultOf(each, FileAbsent)
        self.assertEqual((self.source.fills, self.staged()), (1, []))

    def test_an_error_in_the_middle_breaks_what_is_sent(self) -> None:
        self.source.half = Deferred()
        self.source.error = EngineUnavailable("the engine is lost")
        blob, reader, fetching = self.opened(), Reader(), self.ask(self.arrivals.fetch)
        sending = self.send(blob, reader)
        again: list[Deferred[Any]] = []

        def ask_again(failure: Failure) -> Failure:
            again.append(self.ask(self.arrivals.open))
            return failure

        sending.addErrback(ask_again)
        self.source.half.callback(None)
        self.assertIn("the engine is lost", str(self.failureResultOf(sending, ContentError).value))
        self.failureResultOf(fetching, EngineUnavailable)
        self.failureResultOf(self.send(blob, Reader()), ContentError)
        self.assertLess(len(reader.received), len(DATA))
        self.assertFalse(self.store.has(DIGEST))
        # A client that asks again at once does not get the arrival that failed.
        self.assertEqual(self.source.fills, 2)
        self.successResultOf(again[0])
        self.assertEqual(self.staged(), [])

    def test_wrong_bytes_are_neither_kept_nor_sent_whole(self) -> None:
        for wrong in (Source(DATA[:-1] + b"x"), Source(DATA[:-1], len(DATA))):
            self.source = wrong
            wrong.half = Deferred()
            blob, reader, fetching = self.opened(), Reader(), self.ask(self.arrivals.fetch)
            sending = self.send(blob, reader)
            wrong.half.callback(None)
            self.failureResultOf(sending, ContentError)
            self.failureResultOf(fetching, DigestMismatch)
            self.assertLess(len(reader.received), len(DATA))
            self.assertFalse(self.store.has(DIGEST))
        self.assertEqual(self.staged(), [])

    def test_an_unexpected_error_is_logged_and_not_told(self) -> None:
        self.source.half, self.source.error = Deferred(), ValueError("/a/path")
        blob, fetching = self.opened(), self.ask(self.arrivals.fetch)
        self.source.half.callback(None)
        for failed in (fetching, self.send(blob, Reader())):
            self.assertNotIn("/a/path", str(self.failureResultOf(failed, ContentError).value))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class CancelledTests(ArrivalsTestCase):
    def test_a_caller_who_leaves_disturbs_no_other_and_not_the_arrival(self) -> None:
        self.source.held = Deferred()
        left, stayed = self.ask(self.arrivals.open), self.ask(self.arrivals.open)
        left.cancel()
        self.failureResultOf(left, CancelledError)
        self.source.held.callback(None)
        self.assertEqual(self.read(self.successResultOf(stayed)), DATA)

    def test_a_blob_goes_on_arriving_when_its_readers_have_left(self) -> None:
        self.source.half = Deferred()
        blob, reader = self.opened(), Reader()
        sending = self.send(blob, reader)
        reader.leave()
        self.failureResultOf(sending, ConsumerGone)
        self.source.half.callback(None)
        self.assertTrue(self.store.has(DIGEST))

    def test_how_long_it_was_not_read_is_known_to_its_producer(self) -> None:
        self.source.half = Deferred()
        idle: list[float] = []

        async def fill(arrival: Arrival) -> None:
            idle.append(arrival.unread_for)
            filling = Deferred.fromCoroutine(self.source.fill(arrival))
            self.clock.advance(1)
            idle.append(arrival.unread_for)
            reader = Reader()
            sending = self.send(self.opened(), reader)
            self.clock.advance(5)
            idle.append(arrival.unread_for)
            reader.leave()
            self.failureResultOf(sending, ConsumerGone)
            self.clock.advance(3)
            idle.append(arrival.unread_for)
            assert self.source.half is not None
            self.source.half.callback(None)
            await filling

        self.result(self.arrivals.open(DIGEST, fill))
        self.assertEqual(idle, [0, 1, 0, 3])

    def test_a_stop_cancels_it(self) -> None:
        self.source.half = Deferred()
        blob, fetching = self.opened(), self.ask(self.arrivals.fetch)
        sending = self.send(blob, Reader())
        self.successResultOf(self.arrivals.shutdown())
        self.assertIn("stopping", str(self.failureResultOf(sending, ContentError).value))
        self.failureResultOf(fetching, EngineUnavailable)
        self.failureResultOf(self.ask(self.arrivals.open), EngineUnavailable)
        self.assertEqual((self.source.fills, self.staged()), (1, []))

    def test_cancelling_a_stream_ends_the_blob_in_it(self) -> None:
        self.source.half = Deferred()
        bringing = Deferred.fromCoroutine(self.arrivals.bring(DIGEST, self.source.fill))
        sending = self.send(self.opened(), Reader())
        bringing.cancel()
        self.failureResultOf(bringing, CancelledError)
        self.failureResultOf(sending, ContentError)
        self.assertEqual((self.arrivals.find(DIGEST), self.staged()), (None, []))


class FullDiskTests(ArrivalsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.data = os.urandom(1 * MiB) * 30
        self.large = Digest.of(self.data)
        self.source = Source(self.data)

    def ask(self, ask: Callable[..., Awaitable[IBlob]], *more: object) -> Deferred[Any]:
        return Deferred.fromCoroutine(cast(Any, ask(self.large, self.source.fill, *more)))

    def test_it_is_passed_on_without_being_kept(self) -> None:
        fill_disk_after(self, 5 * MiB)
        self.assertEqual(self.read(self.opened()), self.data)
        refuse_writes(self)
        self.assertEqual(self.read(self.opened()), self.data)
        self.assertFalse(self.store.has(self.large))
        self.assertEqual((self.source.fills, self.staged()), (2, []))

    def test_one_that_cannot_be_kept_when_it_is_whole_waits_for_its_reader(self) -> None:
        def refuse(*arguments: object, **more: object) -> None:
            raise StoreError("it cannot be kept")

        self.patch(BlobFiles, "place", refuse)
        self.assertEqual(self.read(self.opened()), self.data)
        self.assertFalse(self.store.has(self.large))

    def test_a_reader_who_comes_when_the_beginning_is_gone_begins_another(self) -> None:
        refuse_writes(self)
        first, second = Reader(1), Reader()
        sending = self.send(self.opened(), first)
        first.eat(2 * WINDOW)
        self.successResultOf(self.send(self.opened(), second))
        first.eat(None)
        self.successResultOf(sending)
        self.assertEqual((first.received == self.data, second.received == self.data), (True, True))
        self.assertEqual(self.source.fills, 2)

    def test_a_slow_reader_gets_all_of_it_and_little_is_in_memory_meanwhile(self) -> None:
        refuse_writes(self)
        dropped = [0]
        discard = UnkeptBytes.discard_before

        def discard_before(rest: UnkeptBytes, offset: int) -> None:
            dropped.append(offset)
            discard(rest, offset)

        self.patch(UnkeptBytes, "discard_before", discard_before)
        reader = Reader(1)
        sending = self.send(self.opened(), reader)
        while not sending.called:
            self.assertLess(self.source.given - dropped[-1], WINDOW + 2 * self.source.piece)
            self.assertLessEqual(dropped[-1], len(reader.received) + MiB)
            reader.eat(1)
        self.successResultOf(sending)
        self.assertEqual(reader.received == self.data, True)

    def test_without_a_reader_it_ends_some_time_later(self) -> None:
        refuse_writes(self)
        blob = self.opened()
        self.clock.advance(READER_WAIT)
        self.failureResultOf(self.send(blob, Reader()), ContentError)
        self.assertIsNone(self.arrivals.find(self.large))

    def test_what_must_be_kept_is_said_not_to_be(self) -> None:
        fill_disk_after(self, 5 * MiB)
        fetching = self.ask(self.arrivals.fetch)
        self.assertEqual(self.read(self.opened()), self.data)
        self.failureResultOf(fetching, StoreFull)

    def test_a_blob_in_a_stream_of_many_is_not_passed_on(self) -> None:
        refuse_writes(self)
        self.failureResultOf(self.ask(self.arrivals.bring), StoreError)
        self.source.begins = False
        self.failureResultOf(self.ask(self.arrivals.open), StoreError)
