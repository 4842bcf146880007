"""An engine at the other end of a process, as ssh is one.  The processes are real and small."""

from __future__ import annotations

import os
import shlex
import signal
import sys

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from k3dreg.config.engine_address import parse_engine_url
from k3dreg.docker.connection import Connection
from k3dreg.docker.endpoint import make_agent, make_pool
from k3dreg.docker.ssh_transport import ProcessEndpoint, ssh_command
from k3dreg.oci.errors import EngineUnavailable

# What `docker system dial-stdio` is to an engine that greets: an answer to each request.
GREETS = """
import sys
while (line := sys.stdin.readline()):
    if not line.strip():
        sys.stdout.write("HTTP/1.1 200 OK\\r\\nApi-Version: 1.51\\r\\nContent-Length: 2\\r\\n\\r\\nOK")
        sys.stdout.flush()
"""


class Recorder(Protocol):
    """What came, and why it ended."""

    def __init__(self) -> None:
        self.data = b""
        self.ended: Deferred[Failure] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # A Deferred that is given a Failure fails.
        self.ended.callback(reason.value)  # type: ignore[arg-type]


class Commands(SynchronousTestCase):
    def test_the_command_is_what_dockers_client_runs(self) -> None:
        command = shlex.join(ssh_command(parse_engine_url("ssh://me@far:2222"), 10.0))
        self.assertRegex(command, r"^ssh -T .*BatchMode=yes .*-l me -p 2222 -- far docker system dial-stdio$")

    def test_a_socket_over_there_is_quoted_for_the_shell_over_there(self) -> None:
        command = ssh_command(parse_engine_url("ssh://far/a'b;c.sock"), 10.0)
        self.assertEqual(shlex.split(command[-3]), ["unix:///a'b;c.sock"])


class Tunnels(TestCase):
    async def connect(self, script: str) -> Recorder:
        endpoint = ProcessEndpoint(reactor, [sys.executable, "-c", script])
        protocol = await endpoint.connect(Factory.forProtocol(Recorder))
        assert isinstance(protocol, Recorder)
        return protocol

    async def ask(self, command: list[str]) -> tuple[int, int]:
        pool = make_pool(reactor)
        self.addCleanup(pool.closeCachedConnections)
        agent = make_agent(reactor, parse_engine_url("ssh://far"), pool=pool, tunnel=command)
        return await Connection(agent, reactor, base="http://engine", silence=10.0).api_version()

    async def test_requests_and_answers_go_through_the_process(self) -> None:
        self.assertEqual(await self.ask([sys.executable, "-c", GREETS]), (1, 51))

    async def test_what_ssh_complains_of_is_the_reason_without_paths(self) -> None:
        script = "import sys; sys.exit('key /home/me/.ssh/id is bad\\nme@far: Permission denied (publickey). /etc/x')"
        with self.assertRaises(EngineUnavailable) as caught:
            await self.ask([sys.executable, "-c", script])
        self.assertEqual(
            str(caught.exception), "Docker cannot be reached over ssh: me@far: Permission denied (publickey). …"
        )

    async def test_a_process_that_ends_without_a_word_is_told_by_its_status(self) -> None:
        with self.assertRaises(EngineUnavailable) as caught:
            await self.ask([sys.executable, "-c", "raise SystemExit(7)"])
        self.assertIn("it ended with status 7", str(caught.exception))

    async def test_a_program_that_is_not_there_is_a_reason_too(self) -> None:
        with self.assertRaises(EngineUnavailable) as caught:
            await self.ask(["/nonexistent/ssh"])
        self.assertIn("over ssh", str(caught.exception))

    async def test_a_connection_that_is_closed_ends_the_process_after_what_was_written(self) -> None:
        protocol = await self.connect("import sys; open('got', 'w').write(sys.stdin.read())")
        assert protocol.transport is not None
        protocol.transport.write(b"the last words")
        protocol.transport.loseConnection()
        await protocol.ended
        with open("got") as file:  # noqa: ASYNC230
            self.assertEqual(file.read(), "the last words")

    async def test_a_process_that_does_not_end_is_ended(self) -> None:
        protocol = await self.connect("import time; print('ready', flush=True); time.sleep(60)")
        while not protocol.data:
            await wait()
        protocol.transport.abortConnection()  # type: ignore[union-attr]
        await protocol.ended

    async def test_a_connection_that_is_aborted_ends_though_a_child_of_the_process_keeps_its_pipes(self) -> None:
        script = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
        protocol = await self.connect(script)
        while not protocol.data.endswith(b"\n"):
            await wait()
        self.addCleanup(os.kill, int(protocol.data), signal.SIGKILL)
        protocol.transport.abortConnection()  # type: ignore[union-attr]
        await protocol.ended.addTimeout(10, reactor)

    async def test_a_reader_that_pauses_gets_no_more(self) -> None:
        protocol = await self.connect("import sys\nwhile True: sys.stdout.write('x' * 65536)")
        while not protocol.data:
            await wait()
        protocol.transport.pauseProducing()  # type: ignore[union-attr]
        size = len(protocol.data)
        for _ in range(20):
            await wait()
        self.assertEqual(len(protocol.data), size)
        protocol.transport.resumeProducing()  # type: ignore[union-attr]
        while len(protocol.data) == size:
            await wait()
        protocol.transport.abortConnection()  # type: ignore[union-attr]
        await protocol.ended


def wait() -> Deferred[None]:
    """A turn of the reactor."""
    turned: Deferred[None] = Deferred()
    reactor.callLater(0.005, turned.callback, None)
    return turned
