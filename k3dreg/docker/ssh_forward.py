"""Forward the socket of an engine on another machine to this one, by the ssh client.

One process `ssh -L SOCKET:/var/run/docker.sock HOST` serves all connections to the engine.  The first connection starts
it, and so does the next one after it has ended.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectionClosed, ProcessExitedAlready
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from k3dreg.config.engine_address import EngineAddress
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.outcome import Outcome

log = make_logger()

# The engine's socket on the other machine if the URL names none.
USUAL_SOCKET = "/var/run/docker.sock"
# Seconds between checks whether ssh listens.  ssh takes some tenths of a second to log in.
_LOOK_EVERY = 0.05
# Seconds for which a failed ssh is not started again: at first, and at most.  Each failure doubles them.
_AGAIN, _LONGEST = 1.0, 60.0
# Seconds after which the end of a running ssh does not count as a failed start.
_LASTED = 30.0
# Seconds that ssh may take to log in, after those for reaching the other machine.
_LOG_IN = 20.0
# Seconds after the end of a connection within which ssh's error message about it arrives.
_COMPLAINS_WITHIN = 0.1
# The beginning of the names of directories for sockets, and seconds after which an empty one counts as left behind.
_DIRECTORY, _IN_USE = "k3dreg-ssh-", 3600.0
# Bytes of ssh's standard error that are kept at a time: the last ones, which say why ssh has failed.
_LONGEST_COMPLAINT = 4096

Command = Callable[[str], Sequence[str]]


class TunnelFailed(ConnectError):
    """ssh does not reach the engine.  The text is ssh's own message."""

    def __init__(self, why: str) -> None:
        super().__init__(string=why)  # type: ignore[no-untyped-call]

    def __str__(self) -> str:
        return str(self.args[0])


def ssh_command(address: EngineAddress, timeout: float, socket: str) -> tuple[str, ...]:
    """Return the command line that forwards the engine at `address` to `socket`, a path of this machine.

    `timeout`, in seconds, is for reaching the other machine.  ssh never asks for a password (BatchMode), because no
    person could type one.  It notices a dead network within a minute or so (ServerAlive…).  It shares no connection
    with other ssh clients (Control…), because the connection would end with them.

    The command on the other machine is `cat`, and not none (-N).  `cat` ends when this side closes its standard input,
    so ssh ends even if k3dreg is killed.
    """
    options = ["BatchMode=yes", f"ConnectTimeout={max(1, round(timeout))}", "ServerAliveInterval=20"]
    options += ["ServerAliveCountMax=3", "ExitOnForwardFailure=yes", "StreamLocalBindUnlink=yes"]
    options += ["ControlMaster=no", "ControlPath=none"]
    words = ["ssh", "-T", *(word for option in options for word in ("-o", option))]
    words += ["-L", f"{_escape(socket)}:{_escape(address.path or USUAL_SOCKET)}"]
    words += ["-l", address.user] if address.user else []
    words += ["-p", str(address.port)] if address.port else []
    return (*words, "--", address.host, "cat")


def _remove_left_behind() -> None:
    """Remove the directories that killed k3dregs have left, which are empty.  One that is in use has ssh's socket."""
    oldest = time.time() - _IN_USE
    for directory in Path(tempfile.gettempdir()).glob(f"{_DIRECTORY}*"):
        with contextlib.suppress(OSError):
            if directory.stat().st_mtime < oldest:
                directory.rmdir()


def _escape(path: str) -> str:
    """Quote a path for ssh's -L, in which a colon separates paths and a percent sign begins a token (ssh_config(5))."""
    return re.sub(r"([\\:])", r"\\\1", path).replace("%", "%%")


class SshForward:
    """An ssh process that forwards the engine's socket, started by `socket` whenever it does not run.

    The owner calls `close` in the end; a stopping reactor does so, too.
    """

    def __init__(self, reactor: Any, command: Command, timeout: float) -> None:
        """`command` returns the command line that forwards to a socket's path: see `ssh_command`.

        `reactor` starts processes and tells the time.  `timeout`, in seconds, is for reaching the other machine.
        """
        self._reactor = reactor
        self._command = command
        self._timeout = timeout + _LOG_IN
        self._process: _Ssh | None = None
        self._socket: Outcome[str] = Outcome()
        self._began = 0.0
        self._again_at = 0.0
        self._pause = 0.0
        self._why = ""
        # The number of ssh's error messages, and the last one, without paths of this machine.
        self.complaints = 0
        self.last_words = ""

    async def socket(self) -> str:
        """Start ssh if it does not run, and return the path of the socket when ssh listens there.

        Raises `TunnelFailed` when ssh fails, and for some seconds after it has failed.
        """
        if self._process is None:
            if self._reactor.seconds() < self._again_at:
                raise TunnelFailed(self._why)
            self._start()
        return await self._socket.wait()

    def close(self) -> Deferred[None]:
        """End ssh, and fire when it has ended.  A later call of `socket` starts it again."""
        ended: Deferred[None] = Deferred()
        if self._process is None:
            ended.callback(None)
        else:
            self._process.gone.addBoth(lambda _: ended.callback(None))
            self._process.end()
        return ended

    def complain(self, words: str) -> None:
        """Log a message of ssh's standard error, and keep it for the errors of requests."""
        self.complaints += 1
        # Nodes see this text, so it must not contain paths of this machine.
        self.last_words = re.sub(r"(?<!\w)/\S+", "…", words.rpartition("\n")[2].strip())[:200]
        log.warn("ssh: {words}", words=words)

    def ended(self, process: _Ssh, why: str) -> None:
        """Forget a process that has ended.  Connections that wait for it fail with `why`."""
        shutil.rmtree(process.directory, ignore_errors=True)
        self._process = None
        now = self._reactor.seconds()
        lasted = self._socket.is_set and now > self._began + _LASTED
        self._pause = 0.0 if lasted else min(max(_AGAIN, 2 * self._pause), _LONGEST)
        self._again_at = now + self._pause
        self._why = why
        self._socket.fail(TunnelFailed(why))

    def _start(self) -> None:
        self._socket = Outcome()
        self._began = self._reactor.seconds()
        _remove_left_behind()
        self._process = process = _Ssh(self, tempfile.mkdtemp(prefix=_DIRECTORY))
        path = str(Path(process.directory, "docker.sock"))
        words = self._command(path)
        stopping = self._reactor.addSystemEventTrigger("after", "shutdown", self.close)
        process.gone.addBoth(lambda _: self._reactor.removeSystemEventTrigger(stopping))
        try:
            self._reactor.spawnProcess(process, words[0], words, env=None)
        except OSError as error:
            self.ended(process, f"{words[0]} cannot be started: {error.strerror}")
            process.gone.callback(None)
            return
        looking = Deferred.fromCoroutine(self._look(process, path))
        looking.addErrback(lambda failure: failure.trap(CancelledError) and None)
        process.gone.addBoth(lambda _: looking.cancel())

    async def _look(self, process: _Ssh, path: str) -> None:
        """Wait until ssh listens, which it does after it has logged in.  End it if that takes too long."""
        while not _is_there(path):
            if self._reactor.seconds() > self._began + self._timeout:
                self.complain(f"it has not logged in within {self._timeout:.0f} s")
                process.said = self.last_words
                process.end()
                return
            await deferLater(self._reactor, _LOOK_EVERY)
        await deferLater(self._reactor, _LOOK_EVERY)  # the file exists a moment before ssh listens: bind(2), listen(2)
        self._socket.succeed(path)


def _is_there(path: str) -> bool:
    return Path(path).exists()


class _Ssh(ProcessProtocol):
    """One ssh process, with a `directory` of its own for the socket.  `gone` fires when it has ended."""

    def __init__(self, forward: SshForward, directory: str) -> None:
        self.directory = directory
        self.said = ""
        self.gone: Deferred[None] = Deferred()
        self._forward = forward
        self._complaint = b""

    def errReceived(self, data: bytes) -> None:
        """Pass complete lines on, and keep the rest until it is complete or the process ends."""
        *lines, self._complaint = (self._complaint + data)[-_LONGEST_COMPLAINT:].split(b"\n")
        self._say(b"\n".join(lines))

    def end(self) -> None:
        """End the process.  Remove its directory at once, because a stopping reactor may not report the end."""
        shutil.rmtree(self.directory, ignore_errors=True)
        assert self.transport is not None
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess("TERM")
        self.transport.loseConnection()

    def processEnded(self, reason: Failure) -> None:
        """Tell the `SshForward` that the process has ended, and why."""
        self._say(self._complaint)
        signal, status = (getattr(reason.value, name, None) for name in ("signal", "exitCode"))
        how = f"it was ended by signal {signal}" if signal else f"it ended with status {status}"
        self._forward.ended(self, self.said or how)
        self.gone.callback(None)

    def _say(self, words: bytes) -> None:
        if text := words.decode(errors="replace").strip():
            self._forward.complain(text)
            self.said = self._forward.last_words


@implementer(IStreamClientEndpoint)
class ForwardedEndpoint:
    """An endpoint that connects to the engine through ssh."""

    def __init__(self, reactor: Any, forward: SshForward, timeout: float) -> None:
        """`timeout`, in seconds, is for connecting to the socket of this machine."""
        self._reactor = reactor
        self._forward = forward
        self._timeout = timeout

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect, after starting ssh if it does not run.  Fails with `TunnelFailed`."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        path = await self._forward.socket()
        connected: IProtocol = await UNIXClientEndpoint(self._reactor, path, timeout=self._timeout).connect(factory)
        return connected


@implementer(IAgent)
class ForwardedAgent:
    """A wrapper around an agent that makes ssh's error message the reason for a request's failure.

    ssh accepts every connection, and closes it if it cannot reach the engine's socket on the other machine.
    """

    def __init__(self, reactor: Any, agent: IAgent, forward: SshForward) -> None:
        self._reactor = reactor
        self._agent = agent
        self._forward = forward

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """Send a request: see `IAgent`.  Fails with `TunnelFailed` if ssh has reported an error meanwhile."""
        return Deferred.fromCoroutine(self._request(method, uri, headers, bodyProducer))

    async def _request(
        self, method: bytes, uri: bytes, headers: Headers | None, body: IBodyProducer | None
    ) -> IResponse:
        before = self._forward.complaints
        try:
            response: IResponse = await self._agent.request(method, uri, headers, body)
        except (ResponseNeverReceived, ConnectionClosed) as error:
            # ssh writes its message before it closes the connection, but the reactor may see the end first.
            await deferLater(self._reactor, _COMPLAINS_WITHIN)
            if self._forward.complaints == before:
                raise
            raise TunnelFailed(self._forward.last_words) from error
        return response
