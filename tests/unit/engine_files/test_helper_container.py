"""The helper container, whose program runs beside the test; only the engine is one in memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from k3dreg.engine_files import directory_sender, helper_container
from k3dreg.engine_files.helper_container import HelperContainer
from k3dreg.oci.errors import EngineError, FilesUnreachable, K3dregError
from k3dreg.streaming.file_handles import Handle
from tests.fakes.archive_api import FakeArchiveApi
from tests.fakes.workers import InlineWorkers

OWN = "a" * 64
IMAGE = "sha256:" + "b" * 64


class HelperContainerTests(TestCase):
    def setUp(self) -> None:
        self.engine = FakeArchiveApi({})
        self.engine.images = {"k3dreg": IMAGE, IMAGE: IMAGE}
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
            Path(directory, "file").write_bytes(b"a file of the engine's")
        self.engine.directories = set(self.directories)
        self.engine.run, self.engine.runs_on = self.run_container, True
        self.started: list[dict[str, Any]] = []
        self.programs: list[Deferred[None]] = []

    def run_container(self, made: dict[str, Any]) -> None:
        """As the engine would: only that everything is where it is, and not where it is mounted."""
        self.started.append(made)
        sources = {mount["Target"]: mount["Source"] for mount in made["HostConfig"]["Mounts"]}
        self.assertEqual(made["Cmd"][:3], ["-I", "-S", directory_sender.__file__])
        self.send(made, *(sources[target] for target in made["Cmd"][5:]))

    def send(self, made: dict[str, Any], *directories: str) -> None:
        """Run the container's program beside this test, with its words and its environment."""
        [(variable, secret)] = [pair.split("=") for pair in made["Env"]]
        self.assertEqual(variable, directory_sender.SECRET)
        # What every user of the machine can read.
        self.assertFalse(any(secret[:8] in word for word in [*made["Entrypoint"], *made["Cmd"]]))
        name, user = made["Cmd"][3:5]
        self.programs.append(deferToThread(directory_sender.main, secret, name, user, *directories))
        self.addCleanup(lambda: self.programs.pop().addErrback(lambda failure: failure.trap(OSError)))

    async def passed(self, *alternatives: tuple[str, ...]) -> Mapping[str, Handle]:
        helper = HelperContainer(self.engine, InlineWorkers(), reactor, "owner", OWN)
        handles = await helper.pass_directories(alternatives or (self.directories,))
        for handle in handles.values():
            self.addCleanup(handle.close)
        return handles

    async def fails(self, kind: type[K3dregError]) -> str:
        try:
            await self.passed()
        except kind as error:
            self.check_nothing_is_left()
            return str(error)
        raise AssertionError("it did not fail")

    def check_nothing_is_left(self) -> None:
        self.assertEqual(list(self.engine.containers), [OWN])

    async def test_each_directory_comes_and_stays_when_nothing_else_leads_there(self) -> None:
        handles = await self.passed()
        self.assertEqual(tuple(handles), self.directories)
        self.check_nothing_is_left()
        for number, handle in enumerate(handles.values()):
            os.rename(self.directories[number], self.root / f"elsewhere{number}")
            with handle.use() as descriptor:
                self.assertEqual(os.listdir(f"/proc/self/fd/{descriptor}"), ["file"])

    async def test_the_container_is_like_k3dregs_own_may_do_nothing_and_writes_nothing(self) -> None:
        await self.passed()
        (made,) = self.started
        host = made["HostConfig"]
        self.assertEqual((made["Image"], host["NetworkMode"]), (IMAGE, f"container:{OWN}"))
        self.assertTrue(made["Name"].startswith("k3dreg-helper-owner-"))
        self.assertEqual(made["Labels"], {"k3dreg.role": "helper", "k3dreg.owner": "owner"})
        self.assertTrue(all(mount["BindOptions"]["NonRecursive"] for mount in host["Mounts"]))
        self.assertTrue(host["AutoRemove"] and host["ReadonlyRootfs"])
        self.assertEqual(host["CapDrop"], ["ALL"])
        self.assertEqual(host["SecurityOpt"], ["no-new-privileges"])
        self.assertEqual(host["Tmpfs"], {"/var/lib/k3dreg": ""})

    async def test_it_is_as_labelled_and_in_the_user_namespace_as_k3dregs_own(self) -> None:
        self.engine.containers[OWN]["HostConfig"] |= {"Privileged": True, "UsernsMode": "host"}
        await self.passed()
        self.engine.containers[OWN]["HostConfig"] |= {"Privileged": False, "SecurityOpt": ["label:disable"]}
        await self.passed()
        for made in self.started:
            self.assertEqual(made["HostConfig"]["SecurityOpt"], ["no-new-privileges", "label=disable"])
            self.assertEqual(made["HostConfig"]["UsernsMode"], "host")

    async def test_the_first_directories_that_the_engine_has_are_passed(self) -> None:
        handles = await self.passed((str(self.root / "none"),), self.directories[1:])
        self.assertEqual(tuple(handles), self.directories[1:])

    async def test_what_a_killed_k3dreg_left_is_removed(self) -> None:
        self.engine.containers["left"] = {
            "State": "exited",
            "Labels": {"k3dreg.role": "helper", "k3dreg.owner": "owner"},
        }
        await self.passed()
        self.check_nothing_is_left()

    async def test_an_engine_that_does_not_know_k3dregs_container_is_another_one(self) -> None:
        own = self.engine.containers.pop(OWN)
        with self.assertRaisesRegex(EngineError, "No such container"):
            await self.passed()
        self.engine.containers[OWN] = own
        self.assertEqual(self.engine.count("POST"), 0)

    async def test_a_description_of_k3dregs_container_that_is_not_understood_is_an_error(self) -> None:
        del self.engine.containers[OWN]["HostConfig"]
        self.assertIn("not understood", await self.fails(EngineError))

    async def test_a_refusal_is_the_engines_own(self) -> None:
        self.engine.refuses = 403
        self.assertIn("plugin", await self.fails(EngineError))

    async def test_a_container_that_cannot_be_started_is_removed(self) -> None:
        self.engine.run = mock.Mock(side_effect=EngineError("exec: no such file", status=400))
        self.assertIn("no such file", await self.fails(EngineError))

    async def test_one_that_ends_and_has_passed_nothing_is_not_waited_for(self) -> None:
        self.engine.run, self.engine.runs_on = lambda made: None, False
        self.assertIn("passed nothing", await self.fails(FilesUnreachable))

    async def test_nor_one_that_is_gone_already(self) -> None:
        self.engine.run = lambda made: self.engine.containers.pop(next(reversed(self.engine.containers)))
        self.assertIn("passed nothing", await self.fails(FilesUnreachable))

    async def test_what_one_has_sent_that_has_ended_is_still_read(self) -> None:
        self.engine.runs_on = False
        self.assertEqual(tuple(await self.passed()), self.directories)

    async def test_one_that_goes_on_is_not_waited_for_for_long(self) -> None:
        self.engine.run = lambda made: None
        with mock.patch.object(helper_container, "_MAX_WAIT", 0.05):
            self.assertIn("passed nothing within", await self.fails(FilesUnreachable))

    async def test_one_that_passes_something_else_is_not_believed(self) -> None:
        self.engine.run = lambda made: self.send(made, self.directories[0])
        self.assertIn("fewer or more", await self.fails(FilesUnreachable))

    async def test_directories_that_may_not_be_read_here_are_of_no_use(self) -> None:
        opens = os.open

        def deny(path: str, flags: int) -> int:
            if flags & os.O_PATH:  # in the container
                return opens(path, flags)
            raise PermissionError(errno.EACCES, "Permission denied")

        with mock.patch("os.open", deny):
            self.assertIn("cannot open them: Permission denied", await self.fails(FilesUnreachable))

    async def test_directories_are_closed_when_the_container_cannot_be_removed(self) -> None:
        remove = EngineError("removal failed", status=500)
        with mock.patch("k3dreg.docker.containers.remove", side_effect=remove), self.assertRaises(EngineError):
            await self.passed()

    async def test_cancelled_it_removes_the_container_and_listens_no_more(self) -> None:
        self.engine.run = lambda made: None
        passing = Deferred.fromCoroutine(self.passed())
        await deferLater(reactor, 0.01)
        self.assertEqual(len(self.engine.containers), 2)
        passing.cancel()
        with self.assertRaises(CancelledError):
            await passing
        self.check_nothing_is_left()
