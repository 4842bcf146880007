"""A blob that can be sent while it is still being written."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, ContentGone, EngineSilent
from k3dreg.oci.manifest import LARGEST_CONFIG
from k3dreg.streaming.arriving_blob import ArrivingBlob
from k3dreg.streaming.file_handles import FileHandle
from k3dreg.streaming.memory_blob import MemoryBlob
from k3dreg.streaming.push_producer import ConsumerGone
from tests.fakes.consumers import Reader
from tests.fakes.workers import InlineWorkers

DATA = bytes(range(256)) * 4000  # 1024000 bytes, several chunks
SIZE = len(DATA)


class ArrivingBlobTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.touch()
        self.handle = FileHandle(descriptor=os.open(self.path, os.O_RDONLY))
        self.addCleanup(self.handle.close)
        self.blob = ArrivingBlob(InlineWorkers(), Digest.of(DATA), SIZE, self.handle)

    def write(self, total: int) -> None:
        """The writer writes up to `total`, and says so."""
        with self.path.open("r+b") as file:
            file.write(DATA[:total])
        self.blob.advance(total)

    def send(self, reader: Reader, start: int = 0, stop: int = SIZE) -> Deferred[None]:
        return Deferred.fromCoroutine(self.blob.send(reader, start, stop))

    def is_open(self) -> bool:
        try:
            self.handle.read(0, 1)
        except ContentGone:
            return False
        return True

    def test_bytes_are_sent_as_they_arrive(self) -> None:
        reader = Reader()
        sending = self.send(reader)
        self.assertEqual(reader.received, b"")
        for total in (10, 11, 500_000):
            self.write(total)
            self.assertEqual(reader.received, DATA[:total])
        self.assertNoResult(sending)

    def test_the_last_byte_is_held_back_until_the_blob_is_verified(self) -> None:
        reader = Reader()
        sending = self.send(reader)
        self.write(SIZE)
        self.assertEqual(reader.received, DATA[:-1])
        self.assertNoResult(sending)
        self.blob.finish(MemoryBlob(Digest.of(DATA), DATA))
        self.assertEqual(reader.received, DATA)
        self.successResultOf(sending)

    def test_a_range_that_is_there_does_not_wait_for_the_rest(self) -> None:
        self.write(1000)
        reader = Reader()
        self.successResultOf(self.send(reader, 10, 900))
        self.assertEqual(reader.received, DATA[10:900])

    def test_a_slow_sender_holds_up_neither_the_writer_nor_others(self) -> None:
        slow, fast = Reader(appetite=100), Reader()
        sending_slow, sending_fast = self.send(slow), self.send(fast, 5)
        self.write(100)
        self.write(SIZE)
        self.blob.finish(MemoryBlob(Digest.of(DATA), DATA))
        self.successResultOf(sending_fast)
        self.assertEqual((slow.received, fast.received), (DATA[:100], DATA[5:]))
        slow.eat(None)
        self.successResultOf(sending_slow)
        self.assertEqual(slow.received, DATA)

    def test_a_failure_reaches_all_who_send_waiting_or_paused_and_all_who_come_late(self) -> None:
        waiting, paused = self.send(Reader()), self.send(Reader(appetite=0))
        self.write(10)
        self.blob.fail(EngineSilent("the engine sent nothing for 60 s"))
        for sending in (waiting, paused, self.send(Reader())):
            error = self.failureResultOf(sending, ContentError).value
            self.assertIn("the engine sent nothing", str(error))
        self.failureResultOf(Deferred.fromCoroutine(self.blob.read()), ContentError)

    def test_a_failure_in_python_is_not_quoted_for_it_may_name_a_path(self) -> None:
        sending = self.send(Reader())
        self.blob.fail(Failure(FileNotFoundError(2, "no", "/secret/path")))
        self.assertNotIn("secret", str(self.failureResultOf(sending, ContentError).value))

    def test_only_the_first_end_counts(self) -> None:
        self.write(SIZE)
        self.blob.finish(MemoryBlob(Digest.of(DATA), DATA))
        self.blob.fail(ValueError())
        self.successResultOf(self.send(Reader()))

    def test_wrong_bytes_never_look_whole(self) -> None:
        reader = Reader()
        sending = self.send(reader)
        self.write(SIZE)
        self.blob.fail(ContentError("it hashes to something else"))
        self.failureResultOf(sending, ContentError)
        self.assertEqual(len(reader.received), SIZE - 1)
        self.assertIs(reader.producer, None)

    def test_a_sender_that_is_cancelled_or_whose_consumer_leaves_ends_alone(self) -> None:
        leaving, cancelled, staying = Reader(), Reader(), Reader()
        sendings = [self.send(reader) for reader in (leaving, cancelled, staying)]
        leaving.leave()
        sendings[1].cancel()
        self.failureResultOf(sendings[0], ConsumerGone)
        self.failureResultOf(sendings[1], CancelledError)
        self.write(SIZE)
        self.blob.finish(MemoryBlob(Digest.of(DATA), DATA))
        self.successResultOf(sendings[2])
        self.assertEqual((leaving.received, cancelled.received, staying.received == DATA), (b"", b"", True))

    def test_the_file_is_closed_when_the_last_sender_of_a_failed_blob_has_ended(self) -> None:
        self.blob.fail(ValueError())
        self.assertFalse(self.is_open())

    def test_a_finished_blob_that_was_given_to_a_sender_is_sent_from_where_it_is_kept(self) -> None:
        self.write(SIZE)
        self.blob.finish(MemoryBlob(Digest.of(DATA), DATA))
        reader = Reader()
        self.successResultOf(self.send(reader))
        self.assertEqual(reader.received, DATA)

    def test_a_finished_blob_that_was_not_kept_is_gone(self) -> None:
        self.write(SIZE)
        self.blob.finish(None)
        self.failureResultOf(self.send(Reader()), ContentGone)

    def test_the_file_is_closed_when_the_last_sender_of_a_finished_blob_has_ended(self) -> None:
        reader = Reader(appetite=10)
        sending = self.send(reader)
        self.write(SIZE)
        self.blob.finish(None)
        self.assertTrue(self.is_open())
        reader.eat(None)
        self.successResultOf(sending)
        self.assertEqual(reader.received, DATA)
        self.assertFalse(self.is_open())

    def test_the_file_of_a_finished_blob_without_senders_is_closed(self) -> None:
        self.write(SIZE)
        self.blob.finish(None)
        self.assertFalse(self.is_open())

    def test_read_waits_for_the_end(self) -> None:
        reading = Deferred.fromCoroutine(self.blob.read())
        self.write(SIZE)
        self.assertNoResult(reading)
        self.blob.finish(MemoryBlob(Digest.of(DATA), DATA))
        self.assertEqual(self.successResultOf(reading), DATA)

    def test_read_refuses_what_is_no_document(self) -> None:
        blob = ArrivingBlob(InlineWorkers(), Digest.of(DATA), LARGEST_CONFIG + 1, self.handle)
        self.failureResultOf(Deferred.fromCoroutine(blob.read()), ContentError)

    def test_an_empty_blob_is_sent_without_waiting(self) -> None:
        blob = ArrivingBlob(InlineWorkers(), Digest.of(b""), 0, self.handle)
        self.successResultOf(Deferred.fromCoroutine(blob.send(Reader(), 0, 0)))

    @settings(max_examples=50)
    @given(
        st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 300_000)), min_size=1, max_size=5),
        st.lists(st.one_of(st.integers(1, 400_000), st.none()), max_size=30),
    )
    def test_whatever_the_pace_each_gets_exactly_his_range(
        self, starts: list[tuple[int, int]], steps: list[int | None]
    ) -> None:
        self.setUp()
        readers = [Reader(appetite) for _, appetite in starts]
        sendings = [self.send(reader, start) for reader, (start, _) in zip(readers, starts, strict=True)]
        total = 0
        for number, step in enumerate(steps):
            if step is None:
                readers[number % len(readers)].eat(number * 10_000)
            else:
                total = min(SIZE, total + step)
                self.write(total)
            for reader, (start, _) in zip(readers, starts, strict=True):
                assert DATA.startswith(reader.received, start)
                assert start + len(reader.received) <= max(start, min(total, SIZE - 1))
        self.write(SIZE)
        self.blob.finish(MemoryBlob(Digest.of(DATA), DATA))
        for reader, sending, (start, _) in zip(readers, sendings, starts, strict=True):
            reader.eat(None)
            self.successResultOf(sending)
            assert reader.received == DATA[start:]
