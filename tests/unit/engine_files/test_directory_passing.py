from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock, skipUnless

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.engine_files import directory_passing, pass_directories
from k3dreg.engine_files.directory_passing import DirectoryPassing, Situation, may_read_all
from k3dreg.engine_files.engine_files import IEngineFiles
from k3dreg.engine_files.helper_own_image import own_container
from k3dreg.engine_files.layout import engine_directories
from k3dreg.engine_files.local_files import LocalFiles
from k3dreg.engine_files.passed_directories import PassedDirectories
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError, EngineUnavailable, FileAbsent, FilesUnreachable
from k3dreg.streaming.file_handles import Handle
from tests.fakes.archive_api import INFO, FakeArchiveApi
from tests.fakes.consumers import Reader
from tests.fakes.engine_files import FakeEngineFiles
from tests.fakes.workers import InlineWorkers, ManualWorkers

OWN = "a" * 64
IMAGE = "sha256:" + "b" * 64
DATA = os.urandom(100_000)
DIGEST = Digest.of(DATA)


def test_the_own_container_is_known_by_the_files_that_the_engine_makes_for_it() -> None:
    lines = [
        "1 0 0:28 / / rw,relatime - overlay overlay rw,lowerdir=/x",
        f"2 1 8:1 /var/lib/docker/volumes/{'c' * 64}/_data /var/lib/k3dreg rw - ext4 /dev/sda1 rw",
        f"3 1 8:1 /var/lib/docker/containers/{OWN}/resolv.conf /etc/resolv.conf rw - ext4 /dev/sda1 rw",
        f"4 1 8:1 /var/lib/docker/containers/{OWN}/hostname /etc/hostname rw - ext4 /dev/sda1 rw",
    ]
    assert own_container("\n".join(lines)) == OWN
    assert own_container("\n".join(lines[:2])) == ""
    # The engine's own machine has such files elsewhere.
    assert own_container(f"4 1 8:1 /d/containers/{OWN}/hostname /d/containers/{OWN}/hostname rw - ext4 x rw") == ""
    assert own_container("") == ""


def test_who_may_read_everybodys_files() -> None:
    assert may_read_all("Name:\tk3dreg\nCapPrm:\t00\nCapEff:\t000001ffffffffff\n")
    assert may_read_all("CapEff:\t0000000000000004\n")
    assert not may_read_all("CapPrm:\tff\nCapEff:\t00000000a80425f9\n")
    assert not may_read_all("CapEff:\t0000000000000000\nCapBnd:\tff\n")
    assert not may_read_all("")


def test_of_the_classic_store_only_what_may_be_read_is_of_use() -> None:
    containerd = EngineInfo("", "", (1, 51), ImageStore.CONTAINERD, "overlayfs", "/var/lib/docker")
    classic = EngineInfo("", "", (1, 51), ImageStore.CLASSIC, "overlay2", "/var/lib/docker")
    assert len(Situation(OWN, reads_all=False).directories(containerd)) == 3
    assert Situation(OWN, reads_all=False).directories(classic) == ()
    assert len(Situation(OWN, reads_all=True).directories(classic)) == 1


class HandingTests(SynchronousTestCase):
    """With real descriptors and sockets; only the engine is one in memory."""

    def setUp(self) -> None:
        self.engine = FakeArchiveApi({})
        self.engine.images = {"k3dreg": IMAGE, "as the engine knows it": IMAGE}
        self.engine.images[IMAGE] = IMAGE
        self.engine.containers[OWN] = {
            "State": "running",
            "Labels": {},
            "Image": IMAGE,
            "Config": {"Volumes": {"/var/lib/k3dreg": {}}},
            "HostConfig": {"Privileged": False, "UsernsMode": "", "SecurityOpt": None},
        }
        self.root = Path(self.mktemp()).absolute()
        self.directories = (str(self.root / "database"), str(self.root / "layers"))
        for directory in self.directories:
            Path(directory).mkdir(parents=True)
            Path(directory, DIGEST.hex).write_bytes(DATA)
        self.engine.directories = set(self.directories)
        self.engine.run, self.engine.runs_on = self.run_container, True
        self.started: list[dict[str, Any]] = []
        self.workers: InlineWorkers = InlineWorkers()

    def run_container(self, made: dict[str, Any]) -> None:
        """As the engine would: only that everything is where it is, and not where it is mounted."""
        self.started.append(made)
        sources = {mount["Target"]: mount["Source"] for mount in made["HostConfig"]["Mounts"]}
        options, targets = made["Cmd"][:3], made["Cmd"][5:]
        assert options == ["-I", "-S", pass_directories.__file__]
        self.hand_over(made, *(sources[target] for target in targets))

    def hand_over(self, made: dict[str, Any], *directories: str) -> None:
        """Run the container's program beside this test, with its words and its environment."""
        [(variable, secret)] = [pair.split("=") for pair in made["Env"]]
        assert variable == pass_directories.SECRET
        name, user = made["Cmd"][3:5]
        self.beside(lambda: pass_directories.main(secret, name, user, *directories))

    def beside(self, work: Callable[[], object]) -> None:
        """Work in a thread, which ends before the test does."""

        def run() -> None:
            with contextlib.suppress(OSError):
                work()

        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join)

    def take(self, *alternatives: tuple[str, ...]) -> Deferred[Mapping[str, Handle]]:
        hands = DirectoryPassing(self.engine, self.workers, "owner", OWN)
        return Deferred.fromCoroutine(hands.take(alternatives or (self.directories,))).addCallback(
            self.close_in_the_end
        )

    def close_in_the_end(self, handles: Mapping[str, Handle]) -> Mapping[str, Handle]:
        for handle in handles.values():
            self.addCleanup(handle.close)
        return handles

    def taken(self, *alternatives: tuple[str, ...]) -> Mapping[str, Handle]:
        return self.successResultOf(self.take(*alternatives))

    def fails(self, kind: type[Exception]) -> str:
        return str(self.failureResultOf(self.take(), kind).value)

    def check_is_a_place_to_start_from(self, descriptor: int) -> None:
        self.assertEqual(Path(f"/proc/self/fd/{descriptor}", DIGEST.hex).read_bytes(), DATA)
        self.assertFalse(os.get_inheritable(descriptor))
        # And no more.
        with self.assertRaises(OSError):
            os.fchmod(descriptor, 0o777)

    def check_nothing_is_left(self) -> None:
        self.assertEqual(list(self.engine.containers), [OWN])

    def test_each_directory_comes_and_stays_when_nothing_else_leads_there(self) -> None:
        handles = self.taken()
        self.assertEqual(tuple(handles), self.directories)
        self.check_nothing_is_left()
        for number, handle in enumerate(handles.values()):
            os.rename(self.directories[number], self.root / f"elsewhere{number}")
            with handle.use() as descriptor:
                self.check_is_a_place_to_start_from(descriptor)

    def test_the_container_is_like_k3dregs_own_may_do_nothing_and_writes_nothing(self) -> None:
        self.taken()
        (made,) = self.started
        host = made["HostConfig"]
        self.assertEqual((made["Image"], host["NetworkMode"]), (IMAGE, f"container:{OWN}"))
        self.assertTrue(made["Name"].startswith("k3dreg-hands-over-owner-"))
        self.assertEqual(made["Labels"], {"k3dreg.role": "handing-over", "k3dreg.owner": "owner"})
        self.assertTrue(all(mount["BindOptions"]["NonRecursive"] for mount in host["Mounts"]))
        self.assertTrue(host["AutoRemove"] and host["ReadonlyRootfs"])
        self.assertEqual(host["CapDrop"], ["ALL"])
        self.assertEqual(host["SecurityOpt"], ["no-new-privileges"])
        self.assertEqual(host["Tmpfs"], {"/var/lib/k3dreg": ""})

    def test_it_is_as_labelled_and_in_the_user_namespace_as_k3dregs_own(self) -> None:
        self.engine.containers[OWN]["HostConfig"] |= {"Privileged": True, "UsernsMode": "host"}
        self.taken()
        self.engine.containers[OWN]["HostConfig"] |= {"Privileged": False, "SecurityOpt": ["label:disable"]}
        self.taken()
        for made in self.started:
            self.assertEqual(made["HostConfig"]["SecurityOpt"], ["no-new-privileges", "label=disable"])
            self.assertEqual(made["HostConfig"]["UsernsMode"], "host")

    def test_the_first_directories_that_the_engine_has_are_taken(self) -> None:
        handles = self.taken((str(self.root / "none"),), self.directories[1:])
        self.assertEqual(tuple(handles), self.directories[1:])

    def test_what_a_killed_k3dreg_left_is_removed(self) -> None:
        self.engine.containers["left"] = {
            "State": "exited",
            "Labels": {"k3dreg.role": "handing-over", "k3dreg.owner": "owner"},
        }
        self.taken()
        self.check_nothing_is_left()

    def test_a_refusal_is_the_engines_own(self) -> None:
        self.engine.refuses = 403
        self.assertIn("plugin", self.fails(EngineError))
        self.check_nothing_is_left()

    def test_a_container_that_cannot_be_started_is_removed(self) -> None:
        self.engine.run = mock.Mock(side_effect=EngineError("exec: no such file", status=400))
        self.assertIn("no such file", self.fails(EngineError))
        self.check_nothing_is_left()

    def test_one_that_ends_and_has_handed_nothing_over_is_not_waited_for(self) -> None:
        self.engine.run, self.engine.runs_on = lambda made: None, False
        self.assertIn("passed no directories", self.fails(FilesUnreachable))
        self.check_nothing_is_left()

    def test_nor_one_that_is_gone_already(self) -> None:
        self.engine.runs_on = False
        self.engine.run = lambda made: self.engine.containers.pop(next(reversed(self.engine.containers)))
        self.assertIn("passed no directories", self.fails(FilesUnreachable))
        self.check_nothing_is_left()

    def test_one_that_goes_on_is_not_waited_for_for_long(self) -> None:
        self.engine.run, self.engine.runs_on = lambda made: None, True
        with mock.patch.object(directory_passing, "_PATIENCE", 0.05):
            self.assertIn("timed out", self.fails(FilesUnreachable))
        self.check_nothing_is_left()

    def test_one_that_hands_something_else_over_is_not_believed(self) -> None:
        self.engine.run = lambda made: self.hand_over(made, self.directories[0])
        self.fails(FilesUnreachable)
        self.check_nothing_is_left()

    def test_directories_that_may_not_be_read_here_are_of_no_use(self) -> None:
        opens = os.open

        def deny(path: str, flags: int) -> int:
            if flags & os.O_PATH:  # in the container
                return opens(path, flags)
            raise PermissionError(errno.EACCES, "Permission denied")

        denied = mock.patch("os.open", deny)

        def run(made: dict[str, Any]) -> None:
            self.run_container(made)
            denied.start()
            self.addCleanup(denied.stop)

        self.engine.run = run
        self.assertIn("cannot open them: Permission denied", self.fails(FilesUnreachable))
        self.check_nothing_is_left()

    def test_cancelled_it_removes_the_container_and_no_thread_waits_any_longer(self) -> None:
        self.engine.run, self.engine.runs_on = lambda made: None, True
        self.workers = workers = ManualWorkers()
        taking = self.take()
        self.assertEqual(len(workers.waiting), 1)
        taking.cancel()
        self.failureResultOf(taking, CancelledError)
        self.check_nothing_is_left()
        began = time.monotonic()
        workers.work()
        self.assertLess(time.monotonic() - began, directory_passing._PATIENCE / 2)

    def stranger(self, name: str, *says: bytes) -> None:
        """Connect as a process that has found the name out, and hand another directory over."""
        descriptor = os.open(self.directories[1], os.O_PATH)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(f"\0{name}")
                for data in says:
                    socket.send_fds(connection, [data], [descriptor, descriptor])
                connection.settimeout(10)
                self.shown.append(connection.recv(1000))
        except OSError:
            self.shown.append(b"")
        finally:
            os.close(descriptor)

    def test_a_process_that_connects_first_and_does_not_know_the_secret_is_not_listened_to(self) -> None:
        self.shown: list[bytes] = []
        for says in ((b".",), (b"0" * pass_directories.HALF,), (b"0" * 1000, b"."), ()):

            def run(made: dict[str, Any], says: Sequence[bytes] = says) -> None:
                self.stranger_first(made, *says)

            self.engine.run = run
            with mock.patch.object(directory_passing, "_ANSWER", 0.05):
                self.check_are(self.taken())
            self.check_nothing_is_left()
        self.addCleanup(lambda: self.assertEqual(b"".join(self.shown), b""))

    def stranger_first(self, made: dict[str, Any], *says: bytes) -> None:
        self.beside(lambda: self.stranger(made["Cmd"][3], *says))
        eventually(lambda: f"@{made['Cmd'][3]}" in connected())
        self.run_container(made)

    def test_another_user_of_the_machine_is_not_listened_to_even_with_the_secret(self) -> None:
        def run(made: dict[str, Any]) -> None:
            self.hand_over(made, self.directories[1], self.directories[0])

        self.engine.run = run
        with (
            mock.patch("struct.unpack", lambda *_: (1, os.geteuid() + 1234, 1)),
            mock.patch.object(directory_passing, "_PATIENCE", 0.2),
        ):
            self.assertIn("timed out", self.fails(FilesUnreachable))

    def test_nothing_is_handed_to_a_process_that_has_bound_the_name(self) -> None:
        first, second = "a" * pass_directories.HALF, "b" * pass_directories.HALF
        # The second says again what it was shown.
        for says in ("c" * pass_directories.HALF, first, ""):
            shown, error = self.listen(says, lambda name: pass_directories.main(first + second, name, USER, "/"))
            self.assertEqual((shown, error), ((first.encode(), []), "what listens there does not know the secret"))

    def test_to_the_one_that_knows_the_secret_it_is(self) -> None:
        first, second = "a" * pass_directories.HALF, "b" * pass_directories.HALF
        (data, descriptors), error = self.listen(
            second, lambda name: pass_directories.main(first + second, name, USER, "/")
        )
        self.assertEqual((data, len(descriptors), error), (f"{first}.".encode(), 1, ""))
        os.close(descriptors[0])

    def listen(self, says: str, main: Callable[[str], None]) -> tuple[tuple[bytes, list[int]], str]:
        """What a process gets that listens at a name and `says` something, and what `main` fails with."""
        name, failures = f"k3dreg-test-{os.urandom(8).hex()}", [""]

        def run() -> None:
            try:
                main(name)
            except PermissionError as error:
                failures.append(str(error))

        with socket.socket(socket.AF_UNIX) as door:
            door.bind(f"\0{name}")
            door.listen()
            thread = threading.Thread(target=run)
            thread.start()
            connection, _ = door.accept()
            with connection:
                connection.settimeout(10)
                shown, found, _, _ = socket.recv_fds(connection, 1000, 9)
                connection.sendall(says.encode())
                connection.shutdown(socket.SHUT_WR)
                more, others, _, _ = socket.recv_fds(connection, 1000, 9)
            thread.join()
        return (shown + more, [*found, *others]), failures[-1]

    @skipUnless(os.geteuid() == 0, "only root can be somebody else")
    def test_a_listener_of_another_user_is_shown_nothing(self) -> None:
        name = f"k3dreg-test-{os.urandom(8).hex()}"
        with as_nobody(LISTEN, name) as listener:
            with self.assertRaisesRegex(PermissionError, "another user's process"):
                pass_directories.main("a" * 2 * pass_directories.HALF, name, "0", "/")
            self.assertEqual(listener.communicate()[0], "received b''\n")

    @skipUnless(os.geteuid() == 0, "only root can be somebody else")
    def test_a_process_of_another_user_that_connects_first_is_shown_nothing(self) -> None:
        with contextlib.ExitStack() as processes:

            def run(made: dict[str, Any]) -> None:
                [(_, secret)] = [pair.split("=") for pair in made["Env"]]
                process = processes.enter_context(as_nobody(CONNECT, made["Cmd"][3], secret[: pass_directories.HALF]))
                processes.callback(lambda: self.assertEqual(process.communicate()[0], "received b''\n"))
                self.run_container(made)

            self.engine.run = run
            self.check_are(self.taken())

    def check_are(self, handles: Mapping[str, Handle]) -> None:
        for directory, handle in handles.items():
            with handle.use() as descriptor:
                self.assertEqual(os.readlink(f"/proc/self/fd/{descriptor}"), directory)


# What a process of another user's does with the name as its argument.
LISTEN = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as door:
    door.bind("\\0" + sys.argv[1])
    door.listen()
    print("ready", flush=True)
    connection, _ = door.accept()
    print("received", connection.recv(1000))
"""
CONNECT = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect("\\0" + sys.argv[1])
    connection.sendall(sys.argv[2].encode())
    print("ready", flush=True)
    try:
        print("received", connection.recv(1000))
    except ConnectionResetError:
        print("received b''")
"""
USER = str(os.geteuid())


@contextlib.contextmanager
def as_nobody(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has become another user's, once it is ready."""
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


def connected() -> str:
    """The UNIX sockets of this network namespace."""
    return Path("/proc/net/unix").read_text()


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end


class _Hands:
    """Gives the directories of this machine when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Sequence[tuple[str, ...]]] = []
        self.waiting: list[Deferred[None]] = []

    async def take(self, alternatives: Sequence[tuple[str, ...]]) -> Mapping[str, Handle]:
        self.asked.append(alternatives)
        self.waiting.append(Deferred())
        await self.waiting[-1]
        return {directory: Handle(os.open(directory, os.O_PATH)) for directory in alternatives[0]}


class HandedPlacesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.root = Path(self.mktemp()).absolute()
        self.engine = FakeArchiveApi({})
        self.engine.engine_info = evolve(INFO, root_dir=str(self.root))
        self.directory = self.root / "containerd/daemon/io.containerd.content.v1.content"
        self.directory.mkdir(parents=True)
        self.path = str(self.directory / DIGEST.hex)
        Path(self.path).write_bytes(DATA)
        self.hands = _Hands()
        self.otherwise = FakeEngineFiles({})
        self.places = PassedDirectories(self.engine, self.hands, self.clock, engine_directories, self.otherwise)
        self.addCleanup(lambda: self.successResultOf(self.begin(self.places.close())))
        self.files: IEngineFiles = LocalFiles(InlineWorkers(), self.places, "handed")

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        return Deferred.fromCoroutine(coroutine)

    def give(self) -> None:
        self.hands.waiting[-1].callback(None)

    def fails(self, coroutine: Coroutine[Any, Any, Any], kind: type[Exception]) -> None:
        self.failureResultOf(self.begin(coroutine), kind)

    def test_files_are_read_below_what_was_handed_over(self) -> None:
        beginning = self.begin(self.places.begin())
        self.assertEqual(self.hands.asked[0][0], (str(self.directory),))
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
        self.assertEqual(len(self.hands.asked), 1)

    def test_one_who_asks_meanwhile_waits_for_a_second_and_no_longer(self) -> None:
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

    def test_what_is_there_otherwise_is_not_handed_over(self) -> None:
        self.otherwise.host[self.path] = DATA
        self.successResultOf(self.begin(self.places.begin()))
        self.fails(self.files.stat(self.path), FilesUnreachable)
        self.assertEqual(self.hands.asked, [])

    def test_nor_is_anything_of_an_engine_whose_files_nobody_knows(self) -> None:
        self.engine.engine_info = evolve(INFO, root_dir="")
        self.successResultOf(self.begin(self.places.begin()))
        self.fails(self.files.stat(self.path), FilesUnreachable)
        self.assertEqual(self.hands.asked, [])

    def test_after_a_refusal_it_is_asked_again_in_five_minutes_then_in_ten(self) -> None:
        asking = self.begin(self.places.locate(self.path))
        for count, minutes in enumerate((5, 10), 1):
            self.hands.waiting[-1].errback(EngineError("authorization denied by plugin", status=403))
            self.failureResultOf(asking, FilesUnreachable)
            for _ in range(2):
                self.clock.advance(minutes * 30 - 1)
                self.fails(self.files.stat(self.path), FilesUnreachable)
            self.assertEqual(len(self.hands.asked), count)
            self.clock.advance(2)
            asking = self.begin(self.files.stat(self.path))
        self.give()
        self.assertEqual(self.successResultOf(asking).size, len(DATA))

    def test_an_engine_that_went_away_meanwhile_is_asked_as_soon_as_it_is_back(self) -> None:
        asking = self.begin(self.files.stat(self.path))
        self.hands.waiting[-1].errback(EngineUnavailable("the connection was lost"))
        self.failureResultOf(asking, FilesUnreachable)
        asking = self.begin(self.files.stat(self.path))
        self.give()
        self.assertEqual(self.successResultOf(asking).size, len(DATA))

    def test_a_fault_of_ours_keeps_nobody_waiting(self) -> None:
        asking = self.begin(self.files.stat(self.path))
        self.hands.waiting[-1].errback(ValueError("a fault"))
        self.failureResultOf(asking, FilesUnreachable)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_an_engine_that_is_another_one_is_asked_again(self) -> None:
        self.begin(self.places.begin())
        self.give()
        self.engine.engine_info = evolve(self.engine.engine_info, id="another")
        asking = self.begin(self.files.stat(self.path))
        self.assertEqual(len(self.hands.asked), 2)
        self.give()
        self.assertEqual(self.successResultOf(asking).size, len(DATA))

    def test_an_engine_that_is_not_there_at_the_start_is_waited_for(self) -> None:
        self.engine.down = True
        beginning = self.begin(self.places.begin())
        self.clock.advance(2)
        self.fails(self.files.stat(self.path), EngineUnavailable)
        self.engine.down = False
        self.clock.advance(2)
        self.give()
        self.successResultOf(beginning)

    def test_a_stop_waits_for_what_is_under_way(self) -> None:
        beginning = self.begin(self.places.begin())
        beginning.cancel()
        self.failureResultOf(beginning, CancelledError)
        closing = self.begin(self.places.close())
        self.assertNoResult(closing)
        self.give()
        self.successResultOf(closing)
        self.assertFalse(self.places._handles)
        self.fails(self.files.stat(self.path), FilesUnreachable)
        self.assertEqual(len(self.hands.asked), 1)
        self.successResultOf(self.begin(self.places.close()))

    def test_a_beginning_that_is_cancelled_begins_nothing_more(self) -> None:
        self.engine.down = True
        beginning = self.begin(self.places.begin())
        beginning.cancel()
        self.failureResultOf(beginning, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
