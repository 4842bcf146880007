"""Upload sessions in use, with a real store and no network."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred

from k3dreg.formats.upload_session import ContentRange
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    BlobUnknown,
    DigestNotMatched,
    NotOurs,
    SizeNotMatched,
    StoreFull,
    TooManyUploads,
    UploadOutOfOrder,
    UploadUnknown,
)
from k3dreg.oci.media_types import OCI_MANIFEST
from k3dreg.oci.reference import Repository, Tag
from k3dreg.registry.push import Uploads
from k3dreg.registry.upload_sessions import LEFT_ALONE, MOST_SESSIONS, SESSION_IDLE
from k3dreg.registry.use_cases import UploadStatus
from k3dreg.reporting.trace import Trace
from k3dreg.store.interfaces import IBlobWriter
from tests.fakes.body import FakeBody
from tests.fakes.pushing import APP, NAMED, OTHER, UploadsCase, image
from tests.fakes.workers import ManualWorkers


class SessionTests(UploadsCase):
    def append(self, session: str, *chunks: bytes, at: int | None = None) -> UploadStatus:
        size = sum(map(len, chunks))
        asked = None if at is None else ContentRange(at, at + size)
        return cast(UploadStatus, self.result(self.uploads.append(APP, session, FakeBody(chunks), asked, size)))

    def finish(self, session: str, digest: Digest, *chunks: bytes) -> None:
        self.result(self.uploads.commit(APP, session, digest, FakeBody(chunks), None, sum(map(len, chunks))))

    def test_chunks_become_the_blob_and_nothing_is_left_in_staging(self) -> None:
        session = self.uploads.open(APP).session
        self.assertEqual(self.append(session, b"ab", b"c", at=0).received, 3)
        self.assertEqual(self.append(session, b"def").received, 6)
        self.finish(session, Digest.of(b"abcdefgh"), b"gh")
        self.assertEqual(self.read(Digest.of(b"abcdefgh")), b"abcdefgh")
        self.assertEqual(self.staged(), [])
        with self.assertRaises(UploadUnknown):
            self.uploads.status(APP, session)

    def test_nothing_is_pushed_under_the_name_of_another_registry(self) -> None:
        theirs = Repository("docker.io", "library/nginx")
        with self.assertRaises(NotOurs):
            self.uploads.open(theirs)
        self.failed(self.uploads.mount(theirs, Digest.of(b""), Trace()), NotOurs)
        pushing = self.uploads.push_manifest(theirs, image(), OCI_MANIFEST, None, [Tag.parse("1")], Trace())
        self.failed(pushing, NotOurs)
        self.assertEqual((self.staged(), self.pushed.kept()), ([], {}))

    def test_the_blob_of_nothing(self) -> None:
        session = self.uploads.open(APP).session
        self.finish(session, Digest.of(b""))
        self.assertEqual(self.read(Digest.of(b"")), b"")

    def test_sha512_may_be_said_last(self) -> None:
        session = self.uploads.open(APP).session
        self.append(session, b"abc")
        self.finish(session, Digest.of(b"abcdef", "sha512"), b"def")
        self.assertEqual(self.read(Digest.of(b"abcdef", "sha512")), b"abcdef")
        self.assertFalse(self.store.has(Digest.of(b"abcdef")))
        session = self.uploads.open(APP).session
        self.append(session, b"abc")
        wrong = self.uploads.commit(APP, session, Digest.of(b"x", "sha512"), FakeBody(), None, 0)
        self.failed(wrong, DigestNotMatched)
        self.assertEqual(self.staged(), [])

    def test_wrong_bytes_are_never_visible_and_end_the_session(self) -> None:
        session = self.uploads.open(APP).session
        self.append(session, b"abc")
        wrong = Digest.of(b"other")
        self.failed(self.uploads.commit(APP, session, wrong, FakeBody(), None, 0), DigestNotMatched)
        self.assertEqual((self.staged(), self.store.has(wrong), self.store.has(Digest.of(b"abc"))), ([], False, False))
        self.failed(self.uploads.append(APP, session, FakeBody(), None, 0), UploadUnknown)

    def test_a_chunk_out_of_order_is_not_read_and_the_session_lives_on(self) -> None:
        session = self.uploads.open(APP).session
        self.append(session, b"abc", at=0)
        body = FakeBody([b"xyz"])
        self.failed(self.uploads.append(APP, session, body, ContentRange(5, 8), 3), UploadOutOfOrder)
        self.failed(self.uploads.commit(APP, session, Digest.of(b"xyz"), body, ContentRange(0, 3), 3), UploadOutOfOrder)
        self.assertEqual(body.reads, 0)
        self.append(session, b"def", at=3)
        self.finish(session, Digest.of(b"abcdef"))

    def test_a_session_belongs_to_its_repository_whatever_its_name(self) -> None:
        session = self.uploads.open(APP).session
        self.assertEqual(self.uploads.status(NAMED, session).session, session)
        with self.assertRaises(UploadUnknown):
            self.uploads.status(OTHER, session)

    def test_a_cancelled_session_leaves_nothing(self) -> None:
        session = self.uploads.open(APP).session
        self.append(session, b"abc")
        self.uploads.cancel(APP, session)
        self.assertEqual(self.staged(), [])
        with self.assertRaises(UploadUnknown):
            self.uploads.cancel(APP, session)

    def test_a_session_nobody_comes_back_to_expires(self) -> None:
        session = self.uploads.open(APP).session
        self.append(session, b"abc")
        self.clock.advance(SESSION_IDLE - 1)
        self.uploads.status(APP, session)
        self.clock.advance(SESSION_IDLE - 1)
        self.assertEqual(len(self.staged()), 1)
        self.clock.advance(1)
        self.assertEqual(self.staged(), [])
        with self.assertRaises(UploadUnknown):
            self.uploads.status(APP, session)

    def test_a_slow_body_is_no_idle_session(self) -> None:
        session, body = self.uploads.open(APP).session, FakeBody(open_ended=True)
        asked = Deferred.fromCoroutine(self.uploads.append(APP, session, body, None, None))
        self.clock.advance(SESSION_IDLE * 3)
        body.feed(b"abc")
        body.end()
        self.assertEqual(self.successResultOf(asked).received, 3)

    def test_a_look_at_an_upload_under_way_does_not_make_it_an_idle_one(self) -> None:
        session, body = self.uploads.open(APP).session, FakeBody([b"abc"], open_ended=True)
        asked = Deferred.fromCoroutine(self.uploads.append(APP, session, body, None, None))
        self.assertEqual(self.uploads.status(APP, session).received, 3)
        self.clock.advance(SESSION_IDLE * 3)
        body.feed(b"def")
        body.end()
        self.assertEqual(self.successResultOf(asked).received, 6)

    def test_there_are_not_more_than_so_many_and_one_left_alone_makes_room(self) -> None:
        sessions = [self.uploads.open(APP).session for _ in range(MOST_SESSIONS)]
        for session in sessions:
            self.append(session, b"x")
        with self.assertRaises(TooManyUploads):
            self.uploads.open(APP)
        self.clock.advance(LEFT_ALONE)
        self.uploads.open(APP)
        with self.assertRaises(UploadUnknown):
            self.uploads.status(APP, sessions[0])
        self.clock.advance(SESSION_IDLE)
        self.uploads.open(APP)

    def test_the_oldest_session_without_a_byte_makes_room_first_and_at_once(self) -> None:
        used = self.uploads.open(APP).session
        self.append(used, b"x")
        empty = [self.uploads.open(APP).session for _ in range(MOST_SESSIONS - 1)]
        self.clock.advance(LEFT_ALONE)
        for session in empty:
            self.assertEqual(self.uploads.status(APP, session).received, 0)
            self.uploads.open(APP)
            with self.assertRaises(UploadUnknown):
                self.uploads.status(APP, session)
        self.assertEqual(self.uploads.status(APP, used).received, 1)

    def test_a_session_that_was_just_opened_does_not_make_room_while_others_are_left_alone(self) -> None:
        left = [self.uploads.open(APP).session for _ in range(MOST_SESSIONS - 1)]
        for session in left:
            self.append(session, b"x")
        self.clock.advance(LEFT_ALONE)
        opened = self.uploads.open(APP).session
        self.uploads.open(APP)
        self.assertEqual(self.uploads.status(APP, opened).received, 0)
        with self.assertRaises(UploadUnknown):
            self.uploads.status(APP, left[0])

    def test_a_client_that_left_can_go_on_from_what_has_come(self) -> None:
        session, body = self.uploads.open(APP).session, FakeBody([b"abc"], open_ended=True)
        asked = Deferred.fromCoroutine(self.uploads.append(APP, session, body, ContentRange(0, 9), 9))
        asked.addErrback(lambda _: None)
        asked.cancel()
        body.close()
        self.assertEqual(self.uploads.status(APP, session).received, 3)
        self.append(session, b"defghi", at=3)
        self.finish(session, Digest.of(b"abcdefghi"))

    def test_requests_to_one_session_wait_for_each_other(self) -> None:
        session, body = self.uploads.open(APP).session, FakeBody([b"abc"], open_ended=True)
        first = Deferred.fromCoroutine(self.uploads.append(APP, session, body, None, None))
        last = FakeBody([b"def"])
        second = Deferred.fromCoroutine(
            self.uploads.commit(APP, session, Digest.of(b"abcdef"), last, ContentRange(3, 6), 3)
        )
        self.assertEqual(last.reads, 0)
        body.end()
        self.successResultOf(first)
        self.successResultOf(second)

    def test_no_more_is_written_than_was_said(self) -> None:
        session = self.uploads.open(APP).session
        body = FakeBody([b"abc", b"defg", b"hi"])
        self.failed(self.uploads.append(APP, session, body, ContentRange(0, 6), None), SizeNotMatched)
        self.assertEqual(self.uploads.status(APP, session).received, 3)
        self.finish(session, Digest.of(b"abc!"), b"!")
        self.assertEqual(self.read(Digest.of(b"abc!")), b"abc!")

    def test_a_body_shorter_than_it_said_is_told(self) -> None:
        session = self.uploads.open(APP).session
        self.failed(self.uploads.append(APP, session, FakeBody([b"abc"]), ContentRange(0, 9), None), SizeNotMatched)
        self.assertEqual(self.uploads.status(APP, session).received, 3)

    def test_what_has_another_size_on_the_disk_after_a_kill_is_not_there_and_a_push_mends_it(self) -> None:
        digest = Digest.of(b"abcdef")
        for damaged in (b"", b"abcde", b"abcdefg"):
            self.finish(self.uploads.open(APP).session, digest, b"abcdef")
            self.path(digest).write_bytes(damaged)
            self.restart(killed=True)
            self.failed(self.registry.blob(APP, digest, Trace()), BlobUnknown)
            self.assertFalse(self.path(digest).exists())
        self.finish(self.uploads.open(APP).session, digest, b"abcdef")
        self.restart(killed=True)
        self.assertEqual(self.read(digest), b"abcdef")

    def test_a_restart_forgets_sessions_and_what_they_had(self) -> None:
        session = self.uploads.open(APP).session
        self.append(session, b"abc")
        self.restart()
        self.assertEqual(self.staged(), [])
        with self.assertRaises(UploadUnknown):
            self.uploads.status(APP, session)


class WorkTests(UploadsCase):
    """With work that takes its time."""

    def test_a_write_whose_client_left_is_waited_for_before_the_next(self) -> None:
        self.workers = ManualWorkers(self.clock)
        self.begin()
        session = self.uploads.open(APP).session
        first = Deferred.fromCoroutine(self.uploads.append(APP, session, FakeBody([b"abc"]), None, 3))
        first.addErrback(lambda _: None)
        first.cancel()
        self.clock.advance(SESSION_IDLE * 2)  # while the bytes are written, the session does not expire
        self.assertEqual(self.uploads.status(APP, session).received, 3)
        second = Deferred.fromCoroutine(self.uploads.append(APP, session, FakeBody([b"def"]), ContentRange(3, 6), 3))
        self.assertEqual(len(self.workers.waiting), 1)
        self.workers.work()
        self.workers.work()
        self.assertEqual(self.successResultOf(second).received, 6)
        last = Deferred.fromCoroutine(self.uploads.commit(APP, session, Digest.of(b"abcdef"), FakeBody(), None, 0))
        self.workers.work()
        self.assertTrue(self.store.has(Digest.of(b"abcdef")))
        self.successResultOf(last)

    def test_one_that_is_cancelled_under_a_request_is_unknown_to_it_whichever_work_comes_first(self) -> None:
        self.workers = ManualWorkers(self.clock)
        self.begin()
        for first in (0, 1):
            session = self.uploads.open(APP).session
            asked = Deferred.fromCoroutine(self.uploads.append(APP, session, FakeBody([b"abc"]), None, 3))
            self.uploads.cancel(APP, session)
            self.workers.waiting.pop(first)()
            self.workers.work()
            self.failureResultOf(asked, UploadUnknown)
            while self.workers.waiting:
                self.workers.work()
        self.assertEqual(self.staged(), [])

    def test_who_waits_for_a_request_that_fails_is_not_told_of_its_failure(self) -> None:
        self.workers = ManualWorkers(self.clock)
        self.begin()
        session = self.uploads.open(APP).session
        wrong = self.uploads.commit(APP, session, Digest.of(b"other"), FakeBody([b"abc"]), None, 3)
        failing = Deferred.fromCoroutine(wrong)
        waiting = Deferred.fromCoroutine(self.uploads.append(APP, session, FakeBody([b"def"]), None, 3))
        while self.workers.waiting:
            self.workers.work()
        self.failureResultOf(failing, DigestNotMatched)
        self.failureResultOf(waiting, UploadUnknown)

    def test_one_that_is_becoming_a_blob_cannot_be_cancelled(self) -> None:
        self.workers = ManualWorkers(self.clock)
        self.begin()
        session = self.uploads.open(APP).session
        taking = self.uploads.commit(APP, session, Digest.of(b"abc"), FakeBody([b"abc"]), None, 3)
        taken = Deferred.fromCoroutine(taking)
        self.workers.work()
        self.clock.advance(SESSION_IDLE * 2)
        with self.assertRaises(UploadUnknown):
            self.uploads.cancel(APP, session)
        self.workers.work()
        self.successResultOf(taken)
        self.assertEqual(self.read(Digest.of(b"abc")), b"abc")

    def test_a_full_disk_is_told_and_ends_the_session(self) -> None:
        class Full:
            def begin(self, algorithm: str = "sha256") -> IBlobWriter:
                return cast(IBlobWriter, self)

            def write(self, data: bytes) -> None:
                raise StoreFull("no room")

            def abort(self) -> None:
                pass

        self.push_blob(b"was here")
        self.uploads = Uploads(
            self.store, cast(Any, Full()), self.pushed, self.registry, self.names, self.workers, self.clock
        )
        session = self.uploads.open(APP).session
        self.failed(self.uploads.append(APP, session, FakeBody([b"abc"]), None, 3), StoreFull)
        with self.assertRaises(UploadUnknown):
            self.uploads.status(APP, session)
        self.assertEqual(self.read(Digest.of(b"was here")), b"was here")
