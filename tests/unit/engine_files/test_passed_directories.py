from __future__ import annotations

import os
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.engine_files.engine_files import IEngineFiles
from k3dreg.engine_files.layout import engine_directories
from k3dreg.engine_files.local_files import LocalFiles
from k3dreg.engine_files.passed_directories import PassedDirectories
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError, EngineUnavailable, FileAbsent, FilesUnreachable
from k3dreg.streaming.file_handles import Handle
from tests.fakes.archive_api import INFO, FakeArchiveApi
from tests.fakes.consumers import Reader
from tests.fakes.engine_files import FakeEngineFiles
from tests.fakes.workers import InlineWorkers

DATA = os.urandom(100_000)
DIGEST = Digest.of(DATA)


class _Helper:
    """Passes the directories of this machine when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Sequence[tuple[str, ...]]] = []
        self.waiting: list[Deferred[None]] = []

    async def pass_directories(self, alternatives: Sequence[tuple[str, ...]]) -> Mapping[str, Handle]:
        self.asked.append(alternatives)
        self.waiting.append(Deferred())
        await self.waiting[-1]
        return {directory: Handle(os.open(directory, os.O_PATH)) for directory in alternatives[0]}


class PassedDirectoriesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.root = Path(self.mktemp()).absolute()
        self.engine = FakeArchiveApi({})
        self.engine.engine_info = evolve(INFO, root_dir=str(self.root))
        self.directory = self.root / "containerd/daemon/io.containerd.content.v1.content"
        self.directory.mkdir(parents=True)
        self.path = str(self.directory / DIGEST.hex)
        Path(self.path).write_bytes(DATA)
        self.helper = _Helper()
        self.otherwise = FakeEngineFiles({})
        self.passed = PassedDirectories(
            self.engine, self.helper.pass_directories, self.clock, engine_directories, self.otherwise
        )
        self.addCleanup(lambda: self.successResultOf(self.begin(self.passed.close())))
        self.files: IEngineFiles = LocalFiles(InlineWorkers(), self.passed)

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        return Deferred.fromCoroutine(coroutine)

    def give(self) -> None:
        self.helper.waiting[-1].callback(None)

    def fails(self, coroutine: Coroutine[Any, Any, Any], kind: type[Exception]) -> None:
        self.failureResultOf(self.begin(coroutine), kind)

    def test_files_are_read_below_what_was_passed(self) -> None:
        beginning = self.begin(self.passed.begin())
        self.assertEqual(self.helper.asked[0][0], (str(self.directory),))
        self.give()
        self.successResultOf(beginning)
        self.directory.rename(self.root / "elsewhere")
        blob = self.successResultOf(self.begin(self.files.blob(self.path, DIGEST, len(DATA))))
        reader = Reader()
        self.successResultOf(self.begin(blob.send(reader, 0, len(DATA))))
        self.assertEqual(reader.received, DATA)
        self.assertTrue(self.successResultOf(self.begin(self.files.stat(str(self.directory)))).is_directory)
        for path in (f"{self.path}-none", f"{self.directory}-beside", "/etc/passwd"):
            self.fails(self.files.stat(path), FileAbsent)
        self.assertEqual(len(self.helper.asked), 1)

    def test_a_request_that_comes_meanwhile_waits_for_a_second_and_no_longer(self) -> None:
        first = self.begin(self.files.stat(self.path))
        self.clock.advance(0.9)
        self.assertNoResult(first)
        second = self.begin(self.files.stat(self.path))
        self.clock.advance(0.1)
        self.failureResultOf(first, FilesUnreachable)
        self.failureResultOf(second, FilesUnreachable)
        self.fails(self.files.stat(self.path), FilesUnreachable)
        self.give()
        self.assertEqual(self.successResultOf(self.begin(self.files.stat(self.path))).size, len(DATA))

    def test_what_is_there_otherwise_is_not_asked_for(self) -> None:
        self.otherwise.host[self.path] = DATA
        self.successResultOf(self.begin(self.passed.begin()))
        self.fails(self.files.stat(self.path), FilesUnreachable)
        self.assertEqual(self.helper.asked, [])

    def test_nor_is_anything_of_an_engine_whose_files_are_not_known(self) -> None:
        self.engine.engine_info = evolve(INFO, root_dir="")
        self.successResultOf(self.begin(self.passed.begin()))
        self.fails(self.files.stat(self.path), FilesUnreachable)
        self.assertEqual(self.helper.asked, [])

    def test_after_a_refusal_it_is_asked_again_in_five_minutes_then_in_ten(self) -> None:
        asking = self.begin(self.passed.locate(self.path))
        for count, minutes in enumerate((5, 10), 1):
            self.helper.waiting[-1].errback(EngineError("authorization denied by plugin", status=403))
            self.failureResultOf(asking, FilesUnreachable)
            for _ in range(2):
                self.clock.advance(minutes * 30 - 1)
                self.fails(self.files.stat(self.path), FilesUnreachable)
            self.assertEqual(len(self.helper.asked), count)
            self.clock.advance(2)
            asking = self.begin(self.files.stat(self.path))
        self.give()
        self.assertEqual(self.successResultOf(asking).size, len(DATA))

    def test_an_engine_that_went_away_meanwhile_is_asked_as_soon_as_it_is_back(self) -> None:
        asking = self.begin(self.files.stat(self.path))
        self.helper.waiting[-1].errback(EngineUnavailable("the connection was lost"))
        self.failureResultOf(asking, FilesUnreachable)
        asking = self.begin(self.files.stat(self.path))
        self.give()
        self.assertEqual(self.successResultOf(asking).size, len(DATA))

    def test_a_fault_of_ours_keeps_no_request_waiting(self) -> None:
        asking = self.begin(self.files.stat(self.path))
        self.helper.waiting[-1].errback(ValueError("a fault"))
        self.failureResultOf(asking, FilesUnreachable)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_an_engine_that_is_another_one_is_asked_again(self) -> None:
        self.begin(self.passed.begin())
        self.give()
        self.engine.engine_info = evolve(self.engine.engine_info, id="another")
        asking = self.begin(self.files.stat(self.path))
        self.assertEqual(len(self.helper.asked), 2)
        self.give()
        self.assertEqual(self.successResultOf(asking).size, len(DATA))

    def test_an_engine_that_is_not_there_at_the_start_is_waited_for(self) -> None:
        self.engine.down = True
        beginning = self.begin(self.passed.begin())
        self.clock.advance(2)
        self.fails(self.files.stat(self.path), EngineUnavailable)
        self.engine.down = False
        self.clock.advance(2)
        self.give()
        self.successResultOf(beginning)

    def test_a_stop_waits_for_what_is_under_way(self) -> None:
        beginning = self.begin(self.passed.begin())
        beginning.cancel()
        self.failureResultOf(beginning, CancelledError)
        closing = self.begin(self.passed.close())
        self.assertNoResult(closing)
        self.give()
        self.successResultOf(closing)
        self.assertFalse(self.passed._handles)
        self.fails(self.files.stat(self.path), FilesUnreachable)
        self.assertEqual(len(self.helper.asked), 1)
        self.successResultOf(self.begin(self.passed.close()))

    def test_a_beginning_that_is_cancelled_begins_nothing_more(self) -> None:
        self.engine.down = True
        beginning = self.begin(self.passed.begin())
        beginning.cancel()
        self.failureResultOf(beginning, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
