"""Content by digest: what a user of the store sees."""

from __future__ import annotations

import os
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, ContentGone, DigestMismatch, StoreError
from k3dreg.oci.manifest import LARGEST_CONFIG
from k3dreg.store.blob_index import JUST_USED, SMALL, BlobIndex, IndexEntry
from k3dreg.store.blob_store import SETTLING, open_store
from k3dreg.streaming.push_producer import ConsumerGone
from tests.fakes.consumers import Reader
from tests.fakes.stores import LIMIT, StoreTestCase, layer
from tests.fakes.workers import InlineWorkers, ManualWorkers


class BlobStoreTests(StoreTestCase):
    def test_what_is_put_can_be_read_and_sent(self) -> None:
        digest = self.put(b"content")
        blob = self.blob(digest)
        self.assertEqual((blob.digest, blob.size, self.result(blob.read())), (Digest.of(b"content"), 7, b"content"))
        reader = Reader()
        self.result(blob.send(reader, 1, 4))
        self.assertEqual(reader.received, b"ont")

    def test_what_is_put_again_leaves_nothing_in_staging(self) -> None:
        for _ in range(2):
            self.put(b"content")
            self.assertEqual(self.staged(), [])

    def test_a_close_soon_after_a_commit_leaves_nothing_to_be_done_later(self) -> None:
        self.put(b"content", settle=False)
        self.result(self.store.close())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_commit_that_is_told_of_after_the_close_leaves_no_hold(self) -> None:
        told: list[Any] = []
        workers = InlineWorkers(self.clock)
        self.patch(workers, "from_thread", lambda *call: told.append(call))
        self.result(self.store.close())
        self.store = self.result(open_store(self.root, workers, LIMIT, self.clock))
        self.result(self.store.put(b"content"))
        self.result(self.store.close())
        for function, *arguments in told:
            function(*arguments)
        # The fixture for all unit tests finds a hold.

    def test_what_was_never_put_is_not_there(self) -> None:
        self.assertIs(self.store.get(Digest.of(b"x")), None)
        self.assertFalse(self.store.has(Digest.of(b"x")))

    def test_nothing_is_visible_before_the_commit_and_nothing_is_left_in_staging_after_it(self) -> None:
        writer = self.store.writer()
        writer.write(b"con")
        writer.write(memoryview(b"tent"))
        self.assertEqual((writer.written, self.store.has(Digest.of(b"content"))), (7, False))
        self.assertEqual(writer.commit(Digest.of(b"content"), 7), Digest.of(b"content"))
        self.assertTrue(self.store.has(Digest.of(b"content")))
        self.assertEqual(self.staged(), [])

    def test_wrong_bytes_are_refused_and_leave_nothing(self) -> None:
        for digest, size in ((Digest.of(b"other"), None), (None, 6), (Digest.of(b"content", "sha512"), 7)):
            writer = self.store.writer()
            writer.write(b"content")
            with self.assertRaises(DigestMismatch):
                writer.commit(digest, size)
            writer.abort()
        self.assertEqual((self.staged(), self.store.usage().count), ([], 0))

    def test_sha512_is_kept_beside_sha256(self) -> None:
        writer = self.store.writer("sha512")
        writer.write(b"content")
        digest = writer.commit()
        self.assertEqual(digest, Digest.of(b"content", "sha512"))
        self.assertEqual(self.result(self.blob(digest).read()), b"content")
        self.reopen()
        self.assertTrue(self.store.has(digest))

    def test_aborting_leaves_nothing_and_may_come_at_any_time(self) -> None:
        writer = self.store.writer()
        writer.write(b"content")
        writer.abort()
        writer.abort()
        self.assertEqual((self.staged(), self.store.usage().count), ([], 0))
        with self.assertRaises(StoreError):
            writer.write(b"more")
        committed = self.store.writer()
        committed.write(b"content")
        digest = committed.commit()
        committed.abort()
        self.assertTrue(self.store.has(digest))

    def test_a_reader_of_the_staging_file_outlives_commit_and_removal(self) -> None:
        writer = self.store.writer()
        writer.write(b"con")
        reader = writer.open_reader()
        self.assertEqual(reader.read(0, 100), b"con")
        writer.write(b"tent")
        self.result(self.store.discard(writer.commit()))
        self.assertEqual(reader.read(0, 100), b"content")
        reader.close()

    def test_the_same_content_is_kept_once_and_as_it_was(self) -> None:
        inode = self.path(self.put(b"content")).stat().st_ino
        self.assertEqual(self.path(self.put(b"content")).stat().st_ino, inode)
        self.assertEqual((self.store.usage().bytes, self.store.usage().count, self.staged()), (7, 1, []))

    def test_content_survives_a_restart(self) -> None:
        digest = self.put(b"content")
        self.reopen()
        self.assertEqual(self.result(self.blob(digest).read()), b"content")
        self.assertEqual((self.store.usage().bytes, self.store.usage().count), (7, 1))

    def test_what_a_dead_daemon_left_in_staging_is_removed_and_strangers_are_left_alone(self) -> None:
        digest = self.put(b"content")
        stranger = self.path(digest).with_name("README")
        for path in (self.root / "staging" / "half", stranger, self.root / "blobs" / "x", self.root / "note"):
            path.write_bytes(b"?")
        link = self.root / "blobs" / "sha256" / "00" / ("0" * 64)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(self.path(digest).resolve())
        self.reopen()
        self.assertEqual((self.staged(), stranger.read_bytes()), ([], b"?"))
        self.assertEqual(self.store.usage().count, 1)

    def test_a_discarded_blob_is_gone_and_discarding_what_is_not_here_is_no_error(self) -> None:
        digest = self.put(b"content")
        for _ in range(2):
            self.result(self.store.discard(digest))
        self.assertEqual(
            (self.store.get(digest), self.path(digest).exists(), self.store.usage().bytes), (None, False, 0)
        )

    def test_a_file_that_vanished_is_content_gone_and_forgotten(self) -> None:
        digest = self.put(b"content")
        blob = self.blob(digest)
        self.path(digest).unlink()
        self.failureResultOf(Deferred.fromCoroutine(cast(Any, blob.read())), ContentGone)
        self.assertFalse(self.store.has(digest))
        self.put(b"content")
        self.assertTrue(self.store.has(digest))

    def test_a_file_that_was_truncated_is_content_gone_and_forgotten(self) -> None:
        digest = self.put(b"content")
        os.truncate(self.path(digest), 3)
        reader = Reader()
        self.failureResultOf(Deferred.fromCoroutine(cast(Any, self.blob(digest).send(reader, 0, 7))), ContentGone)
        self.assertEqual((self.store.has(digest), self.path(digest).exists()), (False, False))

    def test_a_commit_mends_what_vanished_behind_our_back(self) -> None:
        digest = self.put(b"content")
        self.path(digest).unlink()
        self.put(b"content")
        self.assertEqual(self.result(self.blob(digest).read()), b"content")

    def test_large_content_is_no_document(self) -> None:
        digest = self.put(bytes(LARGEST_CONFIG + 1), settle=False)
        reading = Deferred.fromCoroutine(cast(Any, self.blob(digest).read())).addCallback(len)
        self.failureResultOf(reading, ContentError)

    def test_nothing_is_added_after_the_close(self) -> None:
        writer = self.store.writer()
        writer.write(b"content")
        self.result(self.store.close())
        self.result(self.store.close())
        with self.assertRaises(StoreError):
            writer.commit()
        self.assertEqual(self.staged(), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_commit_whose_asker_was_cancelled_is_done_all_the_same(self) -> None:
        workers = ManualWorkers(self.clock)
        self.result(self.store.close())
        opening = Deferred.fromCoroutine(open_store(self.root, workers, LIMIT, self.clock))
        while workers.waiting:
            workers.work()
        self.store = self.successResultOf(opening)
        putting = Deferred.fromCoroutine(self.store.put(b"content"))
        putting.addErrback(lambda _: None)
        putting.cancel()
        workers.work()
        self.assertTrue(self.store.has(Digest.of(b"content")))
        closing = Deferred.fromCoroutine(self.store.close())
        workers.work_all()
        self.successResultOf(closing)

    def test_only_the_owner_may_look_into_the_state_directory(self) -> None:
        digest = self.put(b"content")
        for path in (self.root, self.root / "blobs", self.path(digest).parent):
            self.assertEqual(path.stat().st_mode & 0o777, 0o700)


class EvictionTests(StoreTestCase):
    """Room for five layers."""

    def has(self, *digests: Digest) -> list[bool]:
        return [self.store.has(digest) for digest in digests]

    def test_the_least_recently_used_goes_first(self) -> None:
        digests = [self.put(layer(number)) for number in range(5)]
        self.store.get(digests[0])
        self.store.has(digests[1])  # is no use
        digests.append(self.put(layer(5)))
        self.assertEqual(self.has(*digests), [True, False, True, True, True, True])
        self.assertFalse(self.path(digests[1]).exists())
        self.assertEqual((self.store.usage().bytes, self.staged()), (LIMIT, []))

    def test_small_documents_go_last(self) -> None:
        manifest = self.put(b"manifest")
        layers = [self.put(layer(number)) for number in range(6)]
        self.assertEqual(self.has(manifest, *layers), [True, False, False, True, True, True, True])

    def test_small_documents_go_all_the_same_when_nothing_else_is_left_to_go(self) -> None:
        documents = [self.put(layer(number, SMALL - 1)) for number in range(11)]
        self.assertEqual(self.has(*documents), [False] + [True] * 10)

    def test_what_is_held_stays_though_it_is_too_much_and_goes_when_it_is_released(self) -> None:
        expected = [Digest.of(layer(number)) for number in range(7)]
        release = self.store.hold(expected)  # before they are there
        digests = [self.put(layer(number)) for number in range(7)]
        self.assertEqual(self.has(*digests), [True] * 7)
        release()
        self.assertEqual(self.has(*digests), [False, False] + [True] * 5)

    def test_two_holds_need_two_releases_and_one_release_counts_once(self) -> None:
        first = self.put(layer(0))
        releases = [self.store.hold([first]) for _ in range(2)]
        releases[0]()
        releases[0]()
        for number in range(1, 7):
            self.put(layer(number))
        self.assertTrue(self.store.has(first))
        releases[1]()
        self.put(layer(7))
        self.assertFalse(self.store.has(first))

    def test_what_has_just_been_committed_stays_until_its_writer_had_time_to_hold_it(self) -> None:
        digests = [self.put(layer(number), settle=False) for number in range(7)]
        self.assertEqual(self.has(*digests), [True] * 7)
        self.clock.advance(SETTLING)
        self.assertEqual(self.has(*digests), [False, False] + [True] * 5)

    def test_what_is_being_sent_stays(self) -> None:
        digest = self.put(layer(0))
        reader = Reader(appetite=0)
        sending = Deferred.fromCoroutine(cast(Any, self.blob(digest).send(reader, 0, 2 * SMALL)))
        others = [self.put(layer(number)) for number in range(1, 7)]
        self.assertEqual(self.has(digest, others[0]), [True, False])
        reader.eat(None)
        self.successResultOf(sending)
        self.assertEqual(reader.received, layer(0))

    def test_a_blob_is_held_only_while_it_is_sent_however_the_sending_ends(self) -> None:
        digest = self.put(layer(0))
        blob = self.blob(digest)  # which stays referred to
        leaving, cancelled = Reader(appetite=0), Reader(appetite=0)
        sendings = [Deferred.fromCoroutine(cast(Any, blob.send(each, 0, 2 * SMALL))) for each in (leaving, cancelled)]
        leaving.leave()
        self.failureResultOf(sendings[0], ConsumerGone)
        self.assertFalse(self.result(self.store.drop(digest)))
        self.assertEqual(self.has(digest), [True])
        sendings[1].cancel()
        self.failureResultOf(sendings[1], CancelledError)
        self.assertEqual(self.has(digest), [False])  # it was to be dropped as soon as that is possible

    def test_a_blob_that_was_just_found_is_not_evicted_but_can_be_dropped(self) -> None:
        digest = self.put(layer(0))
        blob = self.blob(digest)
        for number in range(1, 8):
            self.put(layer(number), settle=False)
        self.result(self.store.put(layer(8)))
        self.assertEqual(self.has(digest), [True])
        reader = Reader()
        self.result(blob.send(reader, 0, 2 * SMALL))
        self.assertEqual(reader.received, layer(0))
        self.assertTrue(self.result(self.store.drop(digest)))

    def test_a_blob_that_was_evicted_before_it_was_sent_is_gone(self) -> None:
        digest = self.put(layer(0))
        blob = self.blob(digest)
        self.clock.advance(JUST_USED)
        for number in range(1, 7):
            self.put(layer(number))
        self.assertEqual(self.has(digest), [False])
        error = self.failureResultOf(Deferred.fromCoroutine(cast(Any, blob.send(Reader(), 0, 1))), ContentGone)
        self.assertIn("not there", str(error.value))

    def test_what_is_pinned_stays(self) -> None:
        self.result(self.store.close())
        pinned = Digest.of(layer(0))

        class Pins:
            def keeps(self, digest: Digest) -> bool:
                return digest == pinned

            def kept(self) -> dict[Digest, int]:
                return {pinned: 0}

        opening = open_store(self.root, InlineWorkers(self.clock), LIMIT, self.clock, Pins())
        self.store = self.result(opening)
        self.close_in_the_end(self.store)
        digests = [self.put(layer(number)) for number in range(7)]
        # It is not counted either: the limit is that of the others.
        self.assertEqual(self.has(*digests), [True, False, True, True, True, True, True])

    def test_one_blob_larger_than_the_limit_can_be_kept_for_a_while(self) -> None:
        digest = self.put(layer(0, 2 * LIMIT), settle=False)
        self.assertEqual(len(self.result(self.blob(digest).read())), 2 * LIMIT)
        self.clock.advance(SETTLING)
        self.assertFalse(self.store.has(digest))

    def test_the_order_of_use_survives_a_restart(self) -> None:
        digests = [self.put(layer(number)) for number in range(5)]
        for age, digest in enumerate(digests):
            os.utime(self.path(digest), (1000 - age, 1000 - age))
        self.reopen()
        self.clock.advance(10_000)
        self.store.get(digests[4])  # noted in the file
        self.reopen()
        self.put(layer(5))
        self.assertEqual(self.has(*digests), [True, True, True, False, True])

    def test_a_lower_limit_holds_from_the_start(self) -> None:
        for number in range(5):
            self.put(layer(number))
        self.reopen(limit=LIMIT // 2)
        self.assertLessEqual(self.store.usage().bytes, LIMIT // 2)

    def test_the_limit_can_be_lowered_and_raised_while_it_is_in_use(self) -> None:
        digests = [self.put(layer(number)) for number in range(5)]
        self.store.set_limit(LIMIT // 2)
        self.assertLessEqual(self.store.usage().bytes, LIMIT // 2)
        self.assertEqual((self.store.usage().limit, self.store.has(digests[4])), (LIMIT // 2, True))
        self.store.set_limit(LIMIT)
        again = [self.put(layer(number)) for number in range(5)]
        self.assertEqual(self.has(*again), [True] * 5)

    def test_who_has_the_file_open_reads_on_when_it_is_evicted(self) -> None:
        writer = self.store.writer()
        writer.write(layer(0))
        reader = writer.open_reader()
        digest = writer.commit()
        self.clock.advance(SETTLING)
        for number in range(1, 7):
            self.put(layer(number))
        self.assertFalse(self.store.has(digest))
        self.assertEqual(reader.read(0, 2 * SMALL), layer(0))
        reader.close()


def test_a_blob_that_was_pinned_just_now_is_not_evicted() -> None:
    pinned, other = Digest.of(b"pinned"), Digest.of(b"other")
    index = BlobIndex(0, lambda digest: digest == pinned, lambda: 10.0)
    for digest in (pinned, other):
        index.add(digest, IndexEntry(100, verified=True, synced=True, stamped=0.0))
    assert list(index.take_victims((), 200)) == [other]
