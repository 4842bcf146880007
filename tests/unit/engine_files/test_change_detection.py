from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker.image import ImageStore
from k3dreg.engine_files import helper_objects
from k3dreg.engine_files.change_detection import ChangeDetection
from k3dreg.engine_files.directories import EngineDirectory
from k3dreg.engine_files.engine_files import NamesVersion
from k3dreg.engine_files.layout import directories_to_hand_over, name_databases
from k3dreg.engine_files.local_files import LocalFiles, files_here
from k3dreg.oci.errors import EngineUnavailable, FilesUnreachable
from tests.fakes.archive_api import INFO, FakeArchiveApi
from tests.fakes.workers import InlineWorkers

KINDS = ("content.v1.content", "metadata.v1.bolt")
PLACES = (
    "/var/lib/docker/containerd/daemon/io.containerd.",
    "/var/lib/containerd/io.containerd.",
    "/var/lib/desktop-containerd/daemon/io.containerd.",
)


def test_the_database_is_handed_over_with_the_content_it_belongs_to() -> None:
    own, systems, desktops = (tuple(place + kind for kind in KINDS) for place in PLACES)
    assert directories_to_hand_over(INFO) == (own, systems, desktops)
    of_the_system = evolve(INFO, containerd_address="/run/containerd/containerd.sock")
    assert directories_to_hand_over(of_the_system) == (systems, own, desktops)
    assert name_databases(of_the_system)[0] == "/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db"
    classic = evolve(INFO, store=ImageStore.CLASSIC, driver="overlay2")
    assert directories_to_hand_over(classic) == (("/var/lib/docker/image/overlay2", "/var/lib/docker/overlay2"),)
    assert name_databases(classic) == ()


class _Engine(FakeArchiveApi):
    """Writes names of images into a file, as the engine does."""

    database: Path | None = None

    def _answer(self, method: str, path: list[str], params: dict[str, str], data: object) -> Any:
        answer = super()._answer(method, path, params, data)
        if path == ["images", "create"] and self.database is not None:
            with self.database.open("ab") as file:
                file.write(f"docker.io/library/{params['repo']}:{params['tag']}".encode())
        return answer


class _Nowhere:
    async def locate(self, path: str) -> EngineDirectory:
        raise FilesUnreachable("nothing was handed over")


class _Elsewhere:
    """As if the engine's directories had been handed over, and were at `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def locate(self, path: str) -> EngineDirectory:
        return EngineDirectory(f"{self._root}{path}")


class NamesOnDiskTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.clock = Clock()
        self.engine = _Engine({})
        self.engine.engine_info = evolve(INFO, root_dir=str(self.root))
        self.file = Path(name_databases(self.engine.engine_info)[0])
        self.file.parent.mkdir(parents=True)
        self.file.write_bytes(b"state 1")
        self.engine.database = self.file
        self.workers = InlineWorkers()
        self.here = files_here(self.engine, self.workers)
        self.nowhere = LocalFiles(self.workers, _Nowhere(), "handed")
        self.names = self.names_in(self.here)
        # Whatever the disk is on which this is run.
        patched = mock.patch("os.major", lambda device: 8)
        patched.start()
        self.addCleanup(patched.stop)

    def names_in(self, *ways: LocalFiles) -> ChangeDetection:
        names = ChangeDetection(self.engine, ways, self.clock, "owner")
        self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(names.close())))
        return names

    @contextmanager
    def running(self, file: Path | None = None) -> Iterator[None]:
        """A containerd has its database open."""
        with (file or self.file).open("r+b") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            yield

    def version(self, names: ChangeDetection | None = None) -> NamesVersion | None:
        return self.successResultOf(Deferred.fromCoroutine((names or self.names).version()))

    def look(self, names: ChangeDetection | None = None) -> None:
        """Have it looked for: that is not done at once."""
        self.assertIsNone(self.version(names))
        self.clock.advance(5)

    def known(self, names: ChangeDetection | None = None) -> NamesVersion:
        """When it has been found out which database it is."""
        self.look(names)
        version = self.version(names)
        assert version is not None
        return version

    def check_asked(self, times: int) -> None:
        self.assertEqual((self.engine.count("POST /images/create"), self.engine.images), (times, {}))

    def test_it_is_proved_once_whose_the_database_is_and_nobody_waits_for_that(self) -> None:
        with self.running():
            self.look()
            for _ in range(3):
                self.assertIsNotNone(self.version())
        self.check_asked(1)

    def test_a_first_pull_is_not_disturbed_by_that(self) -> None:
        with self.running():
            for _ in range(4):
                self.assertIsNone(self.version())
                self.check_asked(0)
                self.clock.advance(1.2)

    def test_what_is_unchanged_is_the_same_and_what_has_changed_is_not(self) -> None:
        with self.running():
            first = self.known()
            self.assertEqual(first.since, os.stat(self.file).st_mtime)
            self.assertEqual(self.version(), first)
            later = int(first.since) + 5
            os.utime(self.file, (later, later))
            second = self.version()
            assert second is not None
            self.assertNotEqual(second, first)
            self.assertEqual(second.since, later)

    def test_another_file_is_another_state_though_all_its_times_are_the_same(self) -> None:
        with self.running():
            first = self.known()
        old = os.stat(self.file)
        other = self.file.with_name("other")
        other.write_bytes(b"state 2")
        os.utime(other, ns=(old.st_atime_ns, old.st_mtime_ns))
        os.rename(other, self.file)
        with self.running():
            self.assertNotEqual(self.version(), first)

    def test_a_database_that_nobody_has_open_is_somebodys_who_is_gone(self) -> None:
        self.look()
        self.check_asked(0)
        # And it was not kept locked.
        with self.running():
            self.clock.advance(30)
            self.assertIsNone(self.version())
            self.assertIsNotNone(self.version())

    def test_when_its_owner_has_ended_it_is_proved_anew(self) -> None:
        with self.running():
            self.known()
        self.assertIsNone(self.version())
        with self.running():
            self.assertIsNone(self.version())
            self.clock.advance(30)
            self.assertIsNone(self.version())
            self.assertIsNotNone(self.version())
        self.check_asked(2)

    def test_another_containerds_database_is_not_the_engines(self) -> None:
        """Though it is where the engine's would be, and that other one runs."""
        self.engine.database = None
        with self.running():
            self.look()
            self.assertIsNone(self.version())
            self.check_asked(1)
            # It is tried again, but seldom.
            self.clock.advance(29)
            self.assertIsNone(self.version())
            self.check_asked(1)
            self.engine.database = self.file
            self.clock.advance(1)
            self.assertIsNone(self.version())
            self.assertIsNotNone(self.version())
            self.check_asked(2)

    def test_of_several_it_is_that_in_which_the_engine_writes(self) -> None:
        root = Path(self.mktemp()).absolute()
        file = Path(f"{root}{name_databases(self.engine.engine_info)[1]}")
        file.parent.mkdir(parents=True)
        file.write_bytes(b"state of the system's containerd")
        names = self.names_in(self.here, LocalFiles(self.workers, _Elsewhere(root), "handed"))
        self.engine.database = file
        with self.running(), self.running(file):
            self.assertEqual(self.known(names).mark[1], os.stat(file).st_ino)

    def test_a_name_may_be_anywhere_in_a_large_database(self) -> None:
        step = 8 * 1024 * 1024
        for before in (step - 30, step - 1, step, 2 * step + 5):
            self.file.write_bytes(bytes(before))
            with self.running():
                self.known(self.names_in(self.here))

    def test_an_engine_that_came_back_is_to_prove_it_again(self) -> None:
        with self.running():
            self.known()
            self.engine.engine_info = evolve(self.engine.engine_info)
            self.assertIsNone(self.version())
            self.known()
        self.check_asked(2)

    def test_an_engine_that_ends_may_come_back_with_another_store(self) -> None:
        """Its containerd runs on, with all that was in it; and nothing else told that the engine was away."""
        with self.running():
            for end in (self.end_well, self.end_badly):
                names = self.names_in(self.here)
                self.known(names)
                end()
                self.engine.database = None
                self.assertIsNone(self.version(names))
                self.clock.advance(30)
                self.assertIsNone(self.version(names))
                self.assertIsNone(self.version(names))
                self.engine.database = self.file

    def end_well(self) -> None:
        self.engine.events[-1].let_go()

    def end_badly(self) -> None:
        self.engine.events[-1].breaks_at = 0
        self.engine.events[-1].let_go()

    def test_an_engine_that_refuses_is_asked_what_its_names_mean(self) -> None:
        self.engine.breaks_imports = True
        with self.running():
            self.look()
            self.assertIsNone(self.version())
        self.assertEqual(self.engine.count("POST /images/create"), 1)

    def test_where_it_cannot_be_read_the_engine_is_left_alone(self) -> None:
        names = self.names_in(self.nowhere)
        with self.running():
            self.look(names)
        self.check_asked(0)

    def test_nor_is_a_disk_believed_that_may_be_another_machines(self) -> None:
        with self.running(), mock.patch("os.major", lambda device: 0):
            self.look()
        self.check_asked(0)

    def test_an_engine_that_is_down_is_an_error(self) -> None:
        self.engine.down = True
        self.failureResultOf(Deferred.fromCoroutine(self.names.version()), EngineUnavailable)

    def test_a_fault_of_ours_harms_nobody(self) -> None:
        with self.running(), mock.patch.object(LocalFiles, "contains", side_effect=ValueError("a fault")):
            self.look()
            self.assertIsNone(self.version())
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.check_asked(1)

    def test_a_stop_in_the_middle_of_it_leaves_no_image(self) -> None:
        for where, held in (
            (helper_objects, "_import_nothing"),
            (LocalFiles, "contains"),
            (helper_objects, "_remove_image"),
        ):
            names, begun = self.names_in(self.here), Deferred[None]()
            what = getattr(where, held)

            async def slowly(*arguments: Any, what: Any = what, begun: Any = begun) -> Any:
                await begun
                return await what(*arguments)

            with self.running(), mock.patch.object(where, held, slowly):
                self.look(names)
                closing = Deferred.fromCoroutine(names.close())
                self.assertNoResult(closing)
                begun.callback(None)
                self.successResultOf(closing)
                self.assertEqual(self.engine.images, {})
                self.clock.advance(1000)
                self.assertIsNone(self.version(names))
        self.check_asked(3)

    def test_what_a_killed_one_left_is_removed_and_nothing_else(self) -> None:
        others = {"k3dreg-probe:other-1": "sha256:1", "k3dreg-reader:owner-1": "sha256:2"}
        self.engine.images = {"k3dreg-probe:owner-0": "sha256:0", **others}
        with self.running():
            self.known()
        self.assertEqual(self.engine.images, others)
