from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from unittest import mock

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.engine_files.reader_files import ReaderFiles
from k3dreg.engine_files.reader_pool import REFUSED_FOR
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    ContentError,
    ContentGone,
    EngineError,
    EngineUnavailable,
    FileAbsent,
    FilesUnreachable,
)
from k3dreg.store.arrivals import READER_WAIT, Arrivals
from k3dreg.store.blob_store import SETTLING, BlobStore, open_store
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.push_producer import ConsumerGone
from tests.fakes.archive_api import CONTENT, ROOT, FakeArchiveApi
from tests.fakes.consumers import Reader
from tests.fakes.stores import fill_disk_after, refuse_writes
from tests.fakes.workers import InlineWorkers

DATA = os.urandom(1_000_000)
DIGEST = Digest.of(DATA)
PATH = f"{CONTENT}/blobs/sha256/{DIGEST.hex}"
OTHER = f"{CONTENT}/blobs/sha256/other"
UNREAD = 10.0


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.engine = FakeArchiveApi({PATH: DATA, OTHER: b"other", **{f"{OTHER}{n}": DATA for n in range(9)}})
        self.scratch = self.mktemp()
        os.mkdir(self.scratch)
        workers = InlineWorkers(self.clock)
        self.state = Path(self.mktemp())
        self.store: BlobStore = self.result(open_store(self.state, workers, 1 << 30, self.clock))
        self.addCleanup(lambda: self.result(self.store.close()))
        self.arrivals = Arrivals(self.store, workers)
        self.addCleanup(self.arrivals.shutdown)
        self.files = self.another()

    def another(self, owner: str = "owner", size: int = 4) -> ReaderFiles:
        workers = InlineWorkers(self.clock)
        return ReaderFiles(
            self.engine, workers, self.clock, self.arrivals, owner=owner, scratch=self.scratch, size=size
        )

    def hold(self) -> ReaderFiles:
        """The engine gives no bytes of an archive until it is let go."""
        self.engine.holds = True
        return self.files

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        return Deferred.fromCoroutine(coroutine)

    def result(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.successResultOf(self.begin(coroutine))

    def fails(self, what: Deferred[Any] | Coroutine[Any, Any, Any], *kinds: type[Exception]) -> Any:
        waited = what if isinstance(what, Deferred) else self.begin(what)
        return self.failureResultOf(waited, *kinds).value

    def blob(self, path: str = PATH) -> IBlob:
        blob: IBlob = self.result(self.files.blob(path, DIGEST))
        return blob

    def send(self, reader: Reader, path: str = PATH, start: int = 0, stop: int | None = None) -> Deferred[Any]:
        blob = self.blob(path)
        return self.begin(blob.send(reader, start, blob.size if stop is None else stop))

    def check_nothing_is_left(self) -> None:
        self.clock.advance(SETTLING)
        self.assertEqual((list((self.state / "staging").iterdir()), self.clock.getDelayedCalls()), ([], []))

    def archives(self) -> int:
        """How often a file was asked for."""
        return len(self.engine.streams)


class ReadingTests(_Case):
    def test_a_file_is_what_it_is_on_the_host(self) -> None:
        stat = self.result(self.files.stat(PATH))
        self.assertEqual((stat.size, stat.is_file, stat.is_directory), (len(DATA), True, False))
        self.assertTrue(self.result(self.files.stat(f"{CONTENT}/blobs")).is_directory)
        self.assertEqual(self.result(self.files.read(OTHER, 5)), b"other")
        self.assertEqual(self.result(self.files.read(PATH, 2_000_000)), DATA)

    def test_a_file_that_is_not_there_is_absent(self) -> None:
        for asking in (
            self.files.stat,
            lambda path: self.files.read(path, 9),
            lambda path: self.files.blob(path, DIGEST),
        ):
            for path in (f"{CONTENT}/none", f"{ROOT}/elsewhere", "/etc/passwd", f"{CONTENT}-longer/x"):
                self.fails(asking(path), FileAbsent)
        self.assertEqual(self.engine.count("POST /images/create"), 1)

    def test_a_directory_is_no_blob(self) -> None:
        self.fails(self.files.blob(f"{CONTENT}/blobs", DIGEST), FileAbsent)

    def test_a_file_with_more_than_was_asked_for_is_refused_and_not_read(self) -> None:
        self.fails(self.files.read(PATH, len(DATA) - 1), ContentError)
        self.fails(self.files.read(OTHER, 4), ContentError)
        self.assertTrue(self.engine.streams[0].closed)

    def test_a_blob_of_another_size_is_refused(self) -> None:
        self.fails(self.files.blob(PATH, DIGEST, len(DATA) + 1), ContentError)

    def test_documents_are_verified(self) -> None:
        self.assertEqual(self.result(self.blob().read()), DATA)
        self.engine.host[PATH] = DATA[:-1] + bytes([DATA[-1] ^ 1])
        self.fails(self.blob().read(), ContentError)

    def test_a_file_that_breaks_off_is_not_taken_for_whole(self) -> None:
        waiting = self.begin(self.hold().read(PATH, 2_000_000))
        self.engine.streams[0].data = self.engine.streams[0].data[:600_000]
        self.engine.streams[0].let_go()
        self.fails(waiting, ContentGone)

    def test_a_blob_is_sent_whole_and_in_parts(self) -> None:
        for start, stop in [(0, len(DATA)), (0, 1), (len(DATA) - 1, len(DATA)), (300_000, 700_001), (5, 5)]:
            reader = Reader()
            self.successResultOf(self.send(reader, start=start, stop=stop))
            self.assertEqual(reader.received, DATA[start:stop])
            self.assertIsNone(reader.producer)

    def test_the_answer_is_read_to_its_end_so_that_its_connection_can_be_used_again(self) -> None:
        self.successResultOf(self.send(Reader()))
        self.assertTrue(self.engine.streams[0].at_end)
        for step in (1000, 512 + 5, 512 + 5 + 507):  # where the content ends may be where a chunk does
            self.engine.step = step
            self.engine.streams.clear()
            self.result(self.files.read(OTHER, 9))
            self.assertTrue(self.engine.streams[0].at_end)

    def test_nothing_disturbs_the_reading_of_what_comes_after_the_content(self) -> None:
        self.engine.step = 512 + 5
        waiting = self.begin(self.hold().read(OTHER, 9))
        stream = self.engine.streams[0]
        stream.let_go(until=self.engine.step)
        self.assertEqual(self.successResultOf(waiting), b"other")
        self.assertFalse(stream.closed)
        stream.let_go()
        self.assertTrue(stream.at_end)


class EndsTests(_Case):
    def test_a_client_that_reads_slowly_holds_up_neither_the_engine_nor_others(self) -> None:
        readers = [Reader(100_000), Reader(1), Reader()]
        sendings = [self.send(reader) for reader in readers]
        self.assertTrue(self.engine.streams[0].at_end)
        self.assertLess(len(readers[0].received), 600_000)
        self.successResultOf(sendings[2])
        for reader, sending in zip(readers, sendings, strict=True):
            reader.eat(None)
            self.successResultOf(sending)
            self.assertEqual(reader.received, DATA)
        self.assertEqual(self.archives(), 1)

    def test_a_file_of_which_no_client_reads_any_more_is_kept_if_it_soon_has_come(self) -> None:
        sending, reader = self.send_held()
        reader.leave()
        self.fails(sending, ConsumerGone)
        self.clock.advance(UNREAD)
        self.assertFalse(self.engine.streams[0].closed)
        self.engine.streams[0].let_go()
        self.successResultOf(self.send(Reader()))
        self.assertEqual(self.archives(), 1)

    def test_a_file_that_no_client_reads_any_more_is_given_up_some_time_later(self) -> None:
        self.files = self.another(size=2)  # of which one reads blobs: it has to come back each time
        for _ in range(3):
            sending, _ = self.send_held()
            sending.cancel()
            self.failureResultOf(sending)
            self.clock.advance(UNREAD + 1)
            self.engine.streams[-1].let_go()
            self.assertTrue(self.engine.streams[-1].closed)
            self.check_nothing_is_left()
        self.engine.holds = False
        self.successResultOf(self.send(Reader()))

    def test_a_file_for_which_no_client_has_waited_until_its_turn_is_not_read(self) -> None:
        self.files = self.another(size=1)
        blob = self.blob()
        reading = self.begin(self.hold().read(OTHER, 9))
        waiting = self.begin(blob.send(Reader(), 0, blob.size))
        waiting.cancel()
        self.failureResultOf(waiting)
        self.engine.holds = False
        self.engine.streams[0].let_go()
        self.successResultOf(reading)
        self.assertEqual((self.engine.streams[1].closed, self.engine.streams[1].at), (True, 0))

    def test_a_file_that_goes_away_while_it_is_sent_is_never_sent_whole(self) -> None:
        sending, reader = self.send_held()
        self.engine.streams[0].data = self.engine.streams[0].data[:900_000]
        self.engine.streams[0].let_go()
        self.assertIn("broke off", str(self.fails(sending, ContentError)))
        self.assertLess(len(reader.received), len(DATA))
        self.check_nothing_is_left()

    def test_a_file_that_has_changed_since_it_was_announced_is_not_sent(self) -> None:
        blob = self.blob()
        self.engine.host[PATH] = DATA + b"more"
        reader = Reader()
        self.fails(self.begin(blob.send(reader, 0, blob.size)), ContentError)
        self.assertEqual(reader.received, b"")

    def test_a_file_with_other_content_than_its_digest_says_is_never_sent_whole(self) -> None:
        self.engine.host[PATH] = DATA[:-1] + bytes([DATA[-1] ^ 1])
        reader = Reader()
        self.fails(self.send(reader), ContentError)
        self.assertLess(len(reader.received), len(DATA))
        self.check_nothing_is_left()

    def test_an_engine_that_is_lost_in_the_middle_fails_the_sending(self) -> None:
        sending, _ = self.send_held()
        self.engine.streams[0].breaks_at = 700_000
        self.engine.streams[0].let_go()
        self.assertIn("connection to the engine was lost", str(self.fails(sending, ContentError)))
        self.check_nothing_is_left()
        self.engine.holds = False
        self.successResultOf(self.send(Reader()))

    def test_a_stop_ends_what_is_read(self) -> None:
        sending, _ = self.send_held()
        self.successResultOf(self.arrivals.shutdown())
        self.fails(sending, ContentError)
        self.assertTrue(self.engine.streams[0].closed)
        self.check_nothing_is_left()

    def send_held(self) -> tuple[Deferred[Any], Reader]:
        """A sending in the middle of which the engine gives no more bytes until its stream is let go."""
        self.engine.holds, reader = True, Reader()
        sending = self.send(reader)
        self.engine.streams[-1].let_go(until=600_000)
        self.assertGreater(len(reader.received), 0)
        return sending, reader


class SharingTests(_Case):
    def test_many_who_ask_for_one_file_at_once_make_the_engine_read_it_once(self) -> None:
        self.hold()
        readers = [Reader() for _ in range(20)]
        sendings = [self.send(reader) for reader in readers]
        self.engine.streams[0].let_go()
        for reader, sending in zip(readers, sendings, strict=True):
            self.successResultOf(sending)
            self.assertEqual(reader.received, DATA)
        self.assertEqual(self.archives(), 1)
        self.check_nothing_is_left()

    def test_those_who_share_may_leave_without_disturbing_the_rest(self) -> None:
        self.hold()
        readers = [Reader() for _ in range(4)]
        sendings = [self.send(reader, start=number) for number, reader in enumerate(readers)]
        for number in (0, 1):
            readers[number].leave()
            self.fails(sendings[number], ConsumerGone)
        self.clock.advance(UNREAD + 1)
        self.engine.streams[0].let_go()
        for number in (2, 3):
            self.successResultOf(sendings[number])
            self.assertEqual(readers[number].received, DATA[number:])
        self.assertEqual(self.archives(), 1)

    def test_one_part_after_another_makes_the_engine_read_the_file_once(self) -> None:
        self.hold()
        for start in range(100_000, 900_000, 100_000):
            reader = Reader()
            sending = self.send(reader, start=start)  # to the end, of which the client takes some bytes
            self.engine.streams[0].let_go(until=start + 50_000)
            reader.leave()
            self.fails(sending, ConsumerGone)
            self.assertEqual(reader.received, DATA[start : start + len(reader.received)])
            self.clock.advance(UNREAD - 1)
        self.engine.streams[0].let_go()
        asked = len(self.engine.asked)
        blob = self.result(self.files.blob(PATH, DIGEST, len(DATA)))
        earlier = Reader()
        self.successResultOf(self.begin(blob.send(earlier, 1, 9)))
        self.assertEqual((earlier.received, len(self.engine.asked)), (DATA[1:9], asked))
        self.fails(self.files.blob(PATH, DIGEST, len(DATA) + 1), ContentError)

    def test_what_is_kept_is_given_without_the_engine(self) -> None:
        self.successResultOf(self.send(Reader()))
        self.engine.down = True
        reader = Reader()
        self.successResultOf(self.send(reader))
        self.assertEqual(reader.received, DATA)

    def test_where_none_can_be_kept_clients_get_the_file_at_their_pace(self) -> None:
        refuse_writes(self)
        readers = [Reader(1), Reader(1), Reader()]
        sendings = [self.send(reader, start=number) for number, reader in enumerate(readers)]
        self.clock.advance(UNREAD + 1)
        for reader in readers:
            reader.eat(None)
        for number, (reader, sending) in enumerate(zip(readers, sendings, strict=True)):
            self.successResultOf(sending)
            self.assertEqual(reader.received, DATA[number:])
        self.assertFalse(self.store.has(DIGEST))
        self.assertTrue(all(stream.closed or stream.at_end for stream in self.engine.streams))

    def test_a_part_is_given_where_none_can_be_kept(self) -> None:
        fill_disk_after(self, 300_000)
        for start, stop in ((700_000, 700_010), (5, 9), (0, len(DATA))):
            reader = Reader()
            self.successResultOf(self.send(reader, start=start, stop=stop))
            self.assertEqual(reader.received, DATA[start:stop])
            self.clock.advance(READER_WAIT)
        self.assertFalse(self.store.has(DIGEST))

    def test_documents_are_read_where_none_can_be_kept(self) -> None:
        refuse_writes(self)
        self.assertEqual(self.result(self.blob().read()), DATA)


class ContainersTests(_Case):
    def test_nothing_is_made_before_it_is_needed(self) -> None:
        self.assertEqual(self.engine.asked, [])

    def test_the_containers_are_ours_to_be_known_and_their_image_is_gone(self) -> None:
        self.result(self.files.prepare())
        self.assertEqual(len(self.engine.containers), 4)
        for made in self.engine.containers.values():
            self.assertEqual((made["Labels"]["k3dreg.role"], made["Labels"]["k3dreg.owner"]), ("reader", "owner"))
            self.assertTrue(made["Name"].startswith("k3dreg-reader-"))
            self.assertTrue(made["HostConfig"]["Mounts"][0]["BindOptions"]["NonRecursive"])
        self.assertEqual(self.engine.images, {})

    def test_a_clean_stop_removes_them_and_no_others(self) -> None:
        others = self.another("other")
        self.result(others.prepare())
        self.result(self.files.prepare())
        self.result(self.files.close())
        self.assertEqual({made["Labels"]["k3dreg.owner"] for made in self.engine.containers.values()}, {"other"})
        self.fails(self.files.stat(PATH), FilesUnreachable)
        self.result(self.files.close())

    def test_those_of_an_unclean_stop_are_found_again(self) -> None:
        self.result(self.files.prepare())
        before = set(self.engine.containers)
        self.files = self.another()
        self.result(self.files.stat(PATH))
        self.result(self.files.prepare())
        self.assertEqual(set(self.engine.containers), before)

    def test_those_that_read_other_directories_or_were_started_are_removed(self) -> None:
        self.result(self.files.prepare())
        first, second, *_ = self.engine.containers
        self.engine.containers[first]["State"] = "exited"
        self.engine.containers[second]["Labels"]["k3dreg.directories"] = '["/etc"]'
        self.files = self.another()
        self.result(self.files.prepare())
        self.assertEqual(len(self.engine.containers), 4)
        self.assertNotIn(first, self.engine.containers)
        self.assertNotIn(second, self.engine.containers)

    def test_an_image_that_was_left_when_something_was_killed_is_removed(self) -> None:
        name = f"k3dreg-reader:owner-{'0' * 32}"
        self.engine.images = {name: "sha256:0", "another:1": "sha256:2"}
        self.engine.told[name] = {"Labels": {"k3dreg.role": "reader", "k3dreg.owner": "owner"}}
        self.result(self.files.prepare())
        self.assertEqual(list(self.engine.images), ["another:1"])

    def test_when_somebody_has_removed_them_they_are_made_again(self) -> None:
        self.result(self.files.prepare())
        for kept in (0, 2):
            for identity in list(self.engine.containers)[kept:]:
                del self.engine.containers[identity]
            for _ in range(4):
                self.assertEqual(self.result(self.files.read(OTHER, 9)), b"other")
            self.fails(self.files.stat(f"{CONTENT}/none"), FileAbsent)
            self.result(self.files.prepare())
            self.assertEqual(len(self.engine.containers), 4)

    def test_those_that_somebody_is_removing_are_as_good_as_gone(self) -> None:
        self.result(self.files.prepare())
        for identity in list(self.engine.containers):
            self.engine.containers[identity]["State"] = "removing"
        self.assertEqual(self.result(self.files.read(OTHER, 9)), b"other")
        self.result(self.files.prepare())
        self.assertEqual([made["State"] for made in self.engine.containers.values()].count("created"), 4)

    def test_whoever_removes_them_one_by_one_fails_nobody(self) -> None:
        self.result(self.files.prepare())
        request, removed = self.engine.request, 0

        async def remove_one_first(method: str, path: str, **more: Any) -> Any:
            """Whichever is asked, it has just been removed; the others are still listed."""
            nonlocal removed
            identity = path.split("/")[2]
            if path.endswith("/archive") and removed < 4:
                removed += 1
                del self.engine.containers[identity]
            return await request(method, path, **more)

        with mock.patch.object(self.engine, "request", remove_one_first):
            self.assertEqual(self.result(self.files.read(OTHER, 9)), b"other")
        self.assertEqual(removed, 4)

    def test_an_engine_that_refuses_to_read_is_no_reason_to_make_others(self) -> None:
        self.result(self.files.prepare())
        before, request = set(self.engine.containers), self.engine.request

        async def refuse(method: str, path: str, **more: Any) -> Any:
            if path.endswith("/archive"):
                raise EngineError("authorization denied by plugin", status=403)
            return await request(method, path, **more)

        with mock.patch.object(self.engine, "request", refuse):
            self.assertIn("authorization denied", str(self.fails(self.files.read(OTHER, 9), FilesUnreachable)))
        self.assertEqual(set(self.engine.containers), before)

    def test_those_that_could_not_be_made_are_made_some_time_later(self) -> None:
        self.engine.refuses_after = 2
        self.result(self.files.prepare())
        self.assertEqual(len(self.engine.containers), 2)
        self.engine.refuses_after = 99
        self.assertEqual(self.result(self.files.read(OTHER, 9)), b"other")
        self.assertEqual(len(self.engine.containers), 2)
        self.clock.advance(60)
        self.assertEqual(self.result(self.files.read(OTHER, 9)), b"other")
        self.assertEqual(len(self.engine.containers), 4)

    def test_those_who_wait_when_they_are_removed_are_served(self) -> None:
        self.files = self.another(size=1)
        stalled = self.begin(self.hold().read(f"{OTHER}1", len(DATA)))
        waiting = self.begin(self.files.read(OTHER, 9))
        self.assertNoResult(waiting)
        self.engine.holds = False
        self.engine.containers.clear()
        stalled.cancel()
        self.failureResultOf(stalled)
        self.assertEqual(self.successResultOf(waiting), b"other")

    def test_the_content_may_be_that_of_the_system_s_containerd(self) -> None:
        system = "/var/lib/containerd/io.containerd.content.v1.content"
        self.engine.directories = {system}
        self.engine.host = {f"{system}/blobs/sha256/a": b"a"}
        self.assertEqual(self.result(self.files.read(f"{system}/blobs/sha256/a", 9)), b"a")
        self.fails(self.files.read(PATH, 9), FileAbsent)

    def test_an_engine_with_another_image_store_gets_other_containers(self) -> None:
        self.result(self.files.prepare())
        system = "/elsewhere/containerd/daemon/io.containerd.content.v1.content"
        self.engine.directories = {system}
        self.engine.host = {f"{system}/a": b"a"}
        self.engine.engine_info = evolve(self.engine.engine_info, root_dir="/elsewhere")
        self.assertEqual(self.result(self.files.read(f"{system}/a", 9)), b"a")


class RefusalTests(_Case):
    def test_an_engine_that_refuses_is_asked_again_only_after_minutes(self) -> None:
        for status in (400, 403, 500):
            self.engine.refuses = status
            before = self.engine.count("POST /images/create")
            for _ in range(3):
                error = self.fails(self.files.stat(PATH), FilesUnreachable)
                self.assertIn("Docker refused to create a reader container", str(error))
            self.assertEqual(self.engine.count("POST /images/create"), before + 1)
            self.assertEqual((self.engine.images, self.engine.containers), ({}, {}))
            self.clock.advance(REFUSED_FOR)
        self.engine.refuses = 0
        self.assertTrue(self.result(self.files.stat(PATH)).is_file)

    def test_an_import_that_fails_inside_a_200_is_a_refusal(self) -> None:
        self.engine.breaks_imports = True
        self.assertIn("no space left", str(self.fails(self.files.stat(PATH), FilesUnreachable)))

    def test_an_engine_that_is_down_is_no_refusal(self) -> None:
        self.engine.down = True
        self.fails(self.files.stat(PATH), EngineUnavailable)
        self.engine.down = False
        self.assertTrue(self.result(self.files.stat(PATH)).is_file)

    def test_podman_and_other_drivers_are_not_asked_at_all(self) -> None:
        self.engine.engine_info = evolve(self.engine.engine_info, root_dir="")
        self.fails(self.files.stat(PATH), FilesUnreachable)
        self.assertEqual(self.engine.count("POST"), 0)
