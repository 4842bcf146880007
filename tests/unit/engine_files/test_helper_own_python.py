"""The Python that k3dreg runs with, put into a container: it is run for real, only not in one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.engine_files import helper_own_python
from k3dreg.engine_files.directory_passing import DirectoryPassing
from k3dreg.engine_files.helper_own_python import OwnPythonHelpers
from k3dreg.engine_files.pass_directories import SECRET
from k3dreg.oci.errors import EngineError, FilesUnreachable
from k3dreg.streaming.file_handles import Handle
from tests.fakes.archive_api import FakeArchiveApi
from tests.fakes.workers import InlineWorkers

if not sys.platform.startswith("linux"):
    pytest.skip("directories are handed over on Linux", allow_module_level=True)


class OwnPythonTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.engine = FakeArchiveApi({})
        self.engine.run, self.engine.runs_on = self.run_container, True
        self.root = Path(self.mktemp()).absolute()
        self.directories = (str(self.root / "content"), str(self.root / "names"))
        for directory in self.directories:
            Path(directory).mkdir(parents=True)
        self.engine.directories = set(self.directories)
        self.made: dict[str, Any] = {}

    def run_container(self, made: dict[str, Any]) -> None:
        """Runs its command, with the paths that it would have in a container, and nothing of this one's environment."""
        self.made = made
        where, data = made["put"]
        self.assertEqual(where, "/")
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            # As tarfile's documentation has it for every Python: those before 3.11.4 know no filters.
            tar.extraction_filter = lambda member, path: member
            tar.extractall(self.root)
        sources = {mount["Target"]: mount["Source"] for mount in made["HostConfig"]["Mounts"]}
        words = [sources.get(word, word) for word in [*made["Entrypoint"], *made["Cmd"]]]
        inside = [f"{self.root}{word}" if word.startswith("/python") else word for word in words]
        environment = dict(pair.split("=") for pair in made["Env"])
        self.assertEqual((set(environment), environment["PYTHONHOME"]), ({"PYTHONHOME", SECRET}, "/python"))
        # What every user of the machine can read.
        self.assertFalse(any(environment[SECRET][:8] in word for word in words))
        environment["PYTHONHOME"] = str(self.root / "python")
        output = subprocess.PIPE
        process = subprocess.Popen(inside, env=environment, stdout=output, stderr=output, text=True)
        self.addCleanup(lambda: self.assertEqual((*process.communicate(), process.returncode), ("", "", 0)))

    def take(self) -> Deferred[Mapping[str, Handle]]:
        workers = InlineWorkers()
        hands = DirectoryPassing(
            self.engine, workers, "owner", OwnPythonHelpers(self.engine, workers, "owner", str(self.root))
        )
        return Deferred.fromCoroutine(hands.take((self.directories,))).addCallback(self.close_in_the_end)

    def close_in_the_end(self, handles: Mapping[str, Handle]) -> Mapping[str, Handle]:
        for handle in handles.values():
            self.addCleanup(handle.close)
        return handles

    def test_it_hands_directories_over(self) -> None:
        handles = self.successResultOf(self.take())
        self.assertEqual(tuple(handles), self.directories)
        for directory, handle in handles.items():
            with handle.use() as descriptor:
                self.assertEqual(os.readlink(f"/proc/self/fd/{descriptor}"), directory)

    def test_nothing_of_it_is_left(self) -> None:
        self.successResultOf(self.take())
        self.assertEqual((self.engine.containers, self.engine.images), ({}, {}))
        self.engine.refuses = 403
        self.failureResultOf(self.take(), EngineError)
        self.assertEqual((self.engine.containers, self.engine.images), ({}, {}))
        self.assertEqual([file.name for file in self.root.iterdir() if file.is_file()], [])

    def test_the_container_may_do_nothing_and_is_of_this_user(self) -> None:
        self.successResultOf(self.take())
        host = self.made["HostConfig"]
        self.assertEqual(self.made["User"], f"{os.geteuid()}:{os.getegid()}")
        self.assertEqual((host["NetworkMode"], host["UsernsMode"], host["CapDrop"]), ("host", "host", ["ALL"]))
        self.assertEqual(host["SecurityOpt"], ["no-new-privileges", "label=disable"])
        self.assertTrue(all(mount["ReadOnly"] for mount in host["Mounts"]))
        self.assertTrue(host["AutoRemove"])

    def test_only_what_is_needed_is_put_into_it(self) -> None:
        self.successResultOf(self.take())
        with tarfile.open(fileobj=io.BytesIO(self.made["put"][1])) as tar:
            names = {member.name for member in tar}
        self.assertIn("python/program", names)
        self.assertFalse([name for name in names if "site-packages" in name or "twisted" in name])
        self.assertLess(len(names), 60)

    def test_a_python_that_tells_nothing_of_itself_is_not_run(self) -> None:
        for program in ("/bin/false", "/bin/true", "/nonexistent"):
            with mock.patch.object(sys, "executable", program):
                self.failureResultOf(self.take(), FilesUnreachable)
        self.assertEqual(self.engine.asked, ["GET /containers/json"] * 3)

    def test_nor_one_that_was_replaced_meanwhile(self) -> None:
        told = helper_own_python._told()
        with mock.patch.object(helper_own_python, "_told", lambda: {**told, "program": "/usr/bin/python3 (deleted)"}):
            self.failureResultOf(self.take(), FilesUnreachable)
