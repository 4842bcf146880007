"""An engine on another machine, at the other end of an ssh.  The processes are real and small."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from k3dreg.config.engine_address import parse_engine_url
from k3dreg.docker import ssh_forward
from k3dreg.docker.connection import Connection
from k3dreg.docker.endpoint import make_agent, make_pool
from k3dreg.docker.ssh_forward import SshForward, TunnelFailed, ssh_command
from k3dreg.oci.errors import EngineUnavailable

# A process that listens as ssh does, with `serve` for each connection.
LISTENS = """
import socket, sys, threading
def listen(serve):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(sys.argv[1])
        listening.listen()
        while True:
            threading.Thread(target=serve, args=listening.accept()[:1], daemon=True).start()
def end():
    sys.stdin.read()
    import os
    os._exit(0)
threading.Thread(target=end, daemon=True).start()
"""
# An engine that greets: an answer to each request.
GREETS = f"""{LISTENS}
def serve(connection):
    with connection, connection.makefile("rw", newline="") as file:
        for line in file:
            if not line.strip():
                file.write("HTTP/1.1 200 OK\\r\\nApi-Version: 1.51\\r\\nContent-Length: 2\\r\\n\\r\\nOK")
                file.flush()
listen(serve)
"""
# The engine over there does not run.
COMPLAINS = f"""{LISTENS}
def serve(connection):
    print("channel 2: open failed: connect failed: Connection refused", file=sys.stderr, flush=True)
    connection.close()
listen(serve)
"""


class CommandTests(SynchronousTestCase):
    def test_it_logs_in_without_a_question_and_forwards_the_usual_socket(self) -> None:
        command = shlex.join(ssh_command(parse_engine_url("ssh://me@far:2222"), 10.0, "/tmp/x/docker.sock"))
        self.assertRegex(
            command,
            r"^ssh -T .*BatchMode=yes .*ExitOnForwardFailure=yes .*"
            r"-L /tmp/x/docker.sock:/var/run/docker.sock -l me -p 2222 -- far cat$",
        )

    def test_a_socket_over_there_may_be_another_one_whatever_its_name(self) -> None:
        command = ssh_command(parse_engine_url("ssh://far/a:b%c.sock"), 10.0, "/s")
        self.assertEqual(command[command.index("-L") + 1], "/s:/a\\:b%%c.sock")


class ForwardTests(TestCase):
    def setUp(self) -> None:
        self.started = 0
        # Where directories for sockets are made: their paths must be short.
        self.enterContext(mock.patch("tempfile.tempdir", "/tmp"))

    def forward(self, script: str, timeout: float = 10.0) -> SshForward:
        def command(socket: str) -> list[str]:
            self.started += 1
            return [sys.executable, "-c", script, socket]

        forward = SshForward(reactor, command, timeout)
        self.addCleanup(forward.close)
        return forward

    async def ask(self, forward: SshForward) -> tuple[int, int]:
        pool = make_pool(reactor)
        try:
            agent = make_agent(reactor, parse_engine_url("ssh://far"), pool=pool, forward=forward)
            return await Connection(agent, reactor, base="http://engine", silence=10.0).api_version()
        finally:
            await pool.closeCachedConnections()

    async def why(self, forward: SshForward) -> str:
        try:
            await self.ask(forward)
        except EngineUnavailable as error:
            return str(error)
        raise AssertionError("it did not fail")

    async def test_one_process_serves_all_connections(self) -> None:
        forward = self.forward(GREETS)
        for _ in range(3):
            self.assertEqual(await self.ask(forward), (1, 51))
        self.assertEqual(self.started, 1)

    async def test_what_ssh_complains_of_is_the_reason_without_paths(self) -> None:
        script = "import sys; sys.exit('key /home/me/.ssh/id is bad\\nme@far: Permission denied (publickey). /etc/x')"
        self.assertEqual(
            await self.why(self.forward(script)),
            "Docker cannot be reached over ssh: me@far: Permission denied (publickey). …",
        )

    async def test_a_process_that_ends_without_a_word_is_told_by_its_status(self) -> None:
        self.assertIn("it ended with status 7", await self.why(self.forward("raise SystemExit(7)")))

    async def test_a_program_that_is_not_there_is_a_reason_too(self) -> None:
        forward = SshForward(reactor, lambda socket: ["/nonexistent/ssh", socket], 10.0)
        self.assertIn("over ssh", await self.why(forward))

    async def test_an_engine_that_does_not_run_over_there_is_told_in_the_words_of_ssh(self) -> None:
        self.assertIn("connect failed: Connection refused", await self.why(self.forward(COMPLAINS)))

    async def test_one_that_does_not_log_in_is_ended(self) -> None:
        with mock.patch.object(ssh_forward, "_LOG_IN", 0.1):
            forward = self.forward("import time; time.sleep(60)", 0.1)
        self.assertIn("has not logged in", await self.why(forward))

    async def test_one_that_has_failed_is_not_started_at_once_again(self) -> None:
        with mock.patch.object(ssh_forward, "_AGAIN", 1.0):
            forward = self.forward("raise SystemExit(7)")
            for _ in range(3):
                self.assertIn("status 7", await self.why(forward))
            self.assertEqual(self.started, 1)
            await deferLater(reactor, 1.1)
            await self.why(forward)
            self.assertEqual(self.started, 2)

    async def test_one_that_ended_after_a_while_is_started_again_at_the_next_need(self) -> None:
        forward = self.forward(GREETS)
        with mock.patch.object(ssh_forward, "_LASTED", 0.0):
            await self.ask(forward)
            directory = Path(await forward.socket()).parent
            await forward.close()
            self.assertNotIn(directory.name, os.listdir(directory.parent))
            self.assertEqual(await self.ask(forward), (1, 51))
        self.assertEqual(self.started, 2)

    async def test_its_socket_is_this_users_alone(self) -> None:
        directory = Path(await self.forward(GREETS).socket()).parent
        self.assertEqual(directory.stat().st_mode & 0o777, 0o700)

    async def test_directories_that_a_killed_k3dreg_has_left_are_removed(self) -> None:
        here = Path(tempfile.mkdtemp(dir="/tmp"))
        self.addCleanup(shutil.rmtree, here)
        self.enterContext(mock.patch("tempfile.tempdir", str(here)))
        for name in ("k3dreg-ssh-left", "k3dreg-ssh-new", "k3dreg-ssh-used", "another"):
            (here / name).mkdir()
        (here / "k3dreg-ssh-used" / "docker.sock").touch()
        for name in ("k3dreg-ssh-left", "k3dreg-ssh-used", "another"):
            os.utime(here / name, (1, 1))
        forward = self.forward(GREETS)
        await self.ask(forward)
        await forward.close()
        self.assertEqual(set(os.listdir(here)), {"k3dreg-ssh-new", "k3dreg-ssh-used", "another"})

    async def test_connections_that_wait_for_one_that_is_closed_fail(self) -> None:
        forward = self.forward("import time; time.sleep(60)")
        waiting = Deferred.fromCoroutine(forward.socket())
        forward.close()
        with self.assertRaises(TunnelFailed):
            await waiting
