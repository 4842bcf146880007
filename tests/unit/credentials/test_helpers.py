"""Credential helpers, run as the programs they are."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from k3dreg.credentials import helpers
from k3dreg.credentials.helpers import LARGEST_ANSWER, HelperFailed, HelperRunner
from k3dreg.formats.basic_auth import Credentials
from tests.fakes.workers import InlineWorkers

SECRET = "Pa55-w0rd"
ANSWER = f'{{"ServerURL":"ghcr.io","Username":"user","Secret":"{SECRET}"}}'


class HelperTests(TestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir(parents=True)
        environment = {"PATH": f"{self.directory.resolve()}:{os.environ['PATH']}", "OWN": "x"}
        self.runner = HelperRunner(reactor, InlineWorkers(), environment, time_limit=20)
        self.hasty = HelperRunner(reactor, InlineWorkers(), environment, time_limit=0.1)

    def helper(self, script: str, name: str = "test") -> None:
        """A helper that is this shell script."""
        path = self.directory / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    async def failure(self, runner: HelperRunner | None = None, name: str = "test") -> str:
        try:
            await (runner or self.runner).get(name, "ghcr.io")
        except HelperFailed as error:
            return str(error)
        raise AssertionError("it did not fail")

    async def test_it_is_asked_for_the_registry_and_its_answer_counts(self) -> None:
        self.helper(f'read host; [ "$1 $host" = "get ghcr.io" ] && echo \'{ANSWER}\'')
        self.assertEqual(await self.runner.get("test", "ghcr.io"), Credentials("user", SECRET))

    async def test_the_user_token_means_an_identity_token(self) -> None:
        self.helper('echo \'{"Username":"<token>","Secret":"t"}\'')
        self.assertEqual(await self.runner.get("test", "ghcr.io"), Credentials(identity_token="t"))

    async def test_it_has_this_process_s_environment_and_what_is_added(self) -> None:
        self.helper('echo "{\\"Username\\":\\"$OWN\\",\\"Secret\\":\\"$ADDED\\"}"')
        self.assertEqual(await self.runner.get("test", "ghcr.io", {"ADDED": "y"}), Credentials("x", "y"))

    async def test_not_found_is_no_failure(self) -> None:
        self.helper("echo credentials not found in native keychain; exit 1")
        self.assertIsNone(await self.runner.get("test", "ghcr.io"))

    async def test_its_complaint_is_told_in_one_line(self) -> None:
        self.helper("printf 'the keychain\\n is locked\\033[0m'; exit 1")
        self.assertEqual(await self.failure(), "docker-credential-test failed: the keychain is locked [0m")

    async def test_no_secret_is_in_the_reason_for_a_failure(self) -> None:
        for script in (f"echo '{ANSWER}'; exit 1", f"echo '{ANSWER}x'", f"echo {SECRET}", f"echo '[\"{SECRET}\"]'"):
            self.helper(f"echo {SECRET} >&2; {script}")
            self.assertNotIn(SECRET, await self.failure())

    async def test_one_that_is_not_installed_is_named(self) -> None:
        self.assertEqual(await self.failure(name="absent"), "docker-credential-absent is not on the PATH")
        self.assertFalse(await self.runner.is_installed("absent"))
        self.helper("")
        self.assertTrue(await self.runner.is_installed("test"))

    async def test_a_name_cannot_lead_to_any_other_program(self) -> None:
        for name in ("../../bin/sh", "/bin/sh", "", "a b", "A", "test\n", "a/../test", "x;y"):
            self.assertIn("is not the name of a credential helper", await self.failure(name=name))

    async def test_a_few_run_at_once_and_a_few_wait_and_more_are_not_asked(self) -> None:
        running = self.directory / "running"
        running.mkdir()
        count = f"touch {running.resolve()}/$$; ls {running.resolve()} | wc -l >>{self.directory.resolve()}/counts"
        self.helper(f"{count}; sleep 0.1; rm {running.resolve()}/$$; echo '{ANSWER}'")
        asked = [
            Deferred.fromCoroutine(self.runner.get("test", f"{number}.io"))
            for number in range(helpers.AT_ONCE + helpers.MOST_WAITING + 2)
        ]
        failures = [await self.failure_of(each) for each in asked[-2:]]
        self.assertIn("too many helpers run already", failures[0])
        for each in asked[:-2]:
            self.assertEqual(await each, Credentials("user", SECRET))
        counts = [int(word) for word in (self.directory / "counts").read_text().split()]
        self.assertLessEqual(max(counts), helpers.AT_ONCE)
        self.assertEqual(await self.runner.get("test", "ghcr.io"), Credentials("user", SECRET))

    async def failure_of(self, asked: Deferred[Credentials | None]) -> str:
        try:
            await asked
        except HelperFailed as error:
            return str(error)
        raise AssertionError("it did not fail")

    async def test_one_that_hangs_is_killed(self) -> None:
        self.helper("exec sleep 600")
        self.assertIn("did not answer within", await self.failure(self.hasty))

    async def test_one_whose_child_keeps_the_pipe_open_is_given_up_all_the_same(self) -> None:
        self.helper("sleep 2 & echo x; exec sleep 600")
        self.assertIn("did not answer within", await self.failure(self.hasty))

    async def test_one_that_floods_is_killed(self) -> None:
        self.helper("exec yes")
        self.assertIn(f"more than {LARGEST_ANSWER >> 10} KiB", await self.failure())

    async def test_one_that_does_not_read_its_question_may_answer_all_the_same(self) -> None:
        self.helper(f"exec <&-; echo '{ANSWER}'")
        self.assertEqual(await self.runner.get("test", "ghcr.io"), Credentials("user", SECRET))

    async def test_giving_up_kills_it(self) -> None:
        alive = self.directory / "alive"
        os.mkfifo(alive)
        self.helper(f"exec 3>{alive.resolve()}; echo >&3; exec sleep 600")
        asked = Deferred.fromCoroutine(self.runner.get("test", "ghcr.io"))
        with alive.open() as pipe:
            pipe.readline()  # the helper runs
            asked.cancel()
            pipe.read()  # returns when nobody holds the other end any more
        try:
            await asked
        except CancelledError:
            return
        self.fail("it was not cancelled")
