"""The socket of an engine on another machine, forwarded to this one by the ssh client.

One process `ssh -L SOCKET:/var/run/docker.sock HOST` serves all connections to the engine.  It is started when the
first connection needs it, and again when it has ended.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
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

# The engine's socket over there when the URL names none.
USUAL_SOCKET = "/var/run/docker.sock"
# Seconds between two looks at whether ssh listens.  It takes some tenths of a second to log in.
_LOOK_EVERY = 0.05
# Seconds for which a failed ssh is not started again: first, and at most.  Each failure doubles them.
_AGAIN, _LONGEST = 1.0, 60.0
# Seconds after which an ssh that ends is no failed start any more.
_LASTED = 30.0
# Seconds, beside those for reaching the other machine, in which ssh has logged in.
_LOG_IN = 20.0
# Seconds after the end of a connection in which what ssh complains of it is here.
_COMPLAINS_WITHIN = 0.1
# Bytes of what ssh complains that are kept: its last lines are the ones that say why.
_LONGEST_COMPLAINT = 4096

Command = Callable[[str], Sequence[str]]


class TunnelFailed(ConnectError):
    """ssh does not reach the engine; the text says why, in its own words."""

    def __init__(self, why: str) -> None:
        super().__init__(string=why)  # type: ignore[no-untyped-call]

    def __str__(self) -> str:
        return str(self.args[0])


def ssh_command(address: EngineAddress, timeout: float, socket: str) -> tuple[str, ...]:
    """Return the words that forward the engine at `address` to `socket`, a path of this machine.

    `timeout` in seconds is for reaching the other machine.  ssh never asks for a password (BatchMode): no person is
    there to type one.  It notices a network that dies within a minute (ServerAlive…).  It shares no connection with
    other ssh clients (Control…), whose end would be its own.

    The command over there is `cat`, in place of -N.  It ends with this side of the pipe, so no ssh outlives a k3dreg
    that is killed.
    """
    options = ["BatchMode=yes", f"ConnectTimeout={max(1, round(timeout))}", "ServerAliveInterval=20"]
    options += ["ServerAliveCountMax=3", "ExitOnForwardFailure=yes", "StreamLocalBindUnlink=yes"]
    options += ["ControlMaster=no", "ControlPath=none"]
    words = ["ssh", "-T", *(word for option in options for word in ("-o", option))]
    words += ["-L", f"{_escape(socket)}:{_escape(address.path or USUAL_SOCKET)}"]
    words += ["-l", address.user] if address.user else []
    words += ["-p", str(address.port)] if address.port else []
    return (*words, "--", address.host, "cat")


def _escape(path: str) -> str:
    """A path as ssh's -L takes it: a colon separates, and a percent sign begins a token (ssh_config(5))."""
    return re.sub(r"([\\:])", r"\\\1", path).replace("%", "%%")


class SshForward:
    """Keeps ssh running while there is need of it."""

    def __init__(self, reactor: Any, command: Command, timeout: float) -> None:
        """`command` forwards to the socket that it is given.  `timeout` in seconds is for reaching the other machine.

        `reactor` starts processes, and ends ssh when it stops.
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
        # How often ssh has complained, and its last words without this machine's paths.
        self.complaints = 0
        self.last_words = ""

    async def socket(self) -> str:
        """Return the path of the socket, once ssh listens there.  Raises `TunnelFailed`."""
        if self._process is None:
            if self._reactor.seconds() < self._again_at:
                raise TunnelFailed(self._why)
            self._start()
        return await self._socket.wait()

    def close(self) -> Deferred[None]:
        """End ssh, and fire when it has ended.  It is started again if there is need of it."""
        ended: Deferred[None] = Deferred()
        if self._process is None:
            ended.callback(None)
        else:
            self._process.gone.addBoth(lambda _: ended.callback(None))
            self._process.end()
        return ended

    def complain(self, words: str) -> None:
        """Log what ssh has written to standard error, and keep it for the errors of requests."""
        self.complaints += 1
        # Nodes are shown this text; paths of this machine are not for them.
        self.last_words = re.sub(r"(?<!\w)/\S+", "…", words.rpartition("\n")[2].strip())[:200]
        log.warn("ssh: {words}", words=words)

    def ended(self, process: _Ssh, why: str) -> None:
        """Forget a process that is no more.  `why` is for connections that wait for it."""
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
        self._process = process = _Ssh(self, tempfile.mkdtemp(prefix="k3dreg-ssh-"))
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
        """Wait until ssh listens, which is when it has logged in."""
        while not _is_there(path):
            if self._reactor.seconds() > self._began + self._timeout:
                self.complain(f"it has not logged in within {self._timeout:.0f} s")
                process.said = self.last_words
                process.end()
                return
            await deferLater(self._reactor, _LOOK_EVERY)
        await deferLater(self._reactor, _LOOK_EVERY)  # a socket is there a moment before its owner listens
        self._socket.succeed(path)


def _is_there(path: str) -> bool:
    return Path(path).exists()


class _Ssh(ProcessProtocol):
    """One process; `directory` is its own."""

    def __init__(self, forward: SshForward, directory: str) -> None:
        self.directory = directory
        self.said = ""
        self.gone: Deferred[None] = Deferred()
        self._forward = forward
        self._complaint = b""

    def errReceived(self, data: bytes) -> None:
        """Tell whole lines at once: ssh writes a line in one piece."""
        *lines, self._complaint = (self._complaint + data)[-_LONGEST_COMPLAINT:].split(b"\n")
        self._say(b"\n".join(lines))

    def end(self) -> None:
        """End the process.  Its directory goes at once: the reactor may be about to stop."""
        shutil.rmtree(self.directory, ignore_errors=True)
        assert self.transport is not None
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess("TERM")
        self.transport.loseConnection()

    def processEnded(self, reason: Failure) -> None:
        """See `IProcessProtocol`."""
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
    """Connects to the engine through ssh."""

    def __init__(self, reactor: Any, forward: SshForward, timeout: float) -> None:
        """`timeout` in seconds is for the socket of this machine."""
        self._reactor = reactor
        self._forward = forward
        self._timeout = timeout

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Start ssh if it does not run.  Fails with `TunnelFailed`."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        path = await self._forward.socket()
        connected: IProtocol = await UNIXClientEndpoint(self._reactor, path, timeout=self._timeout).connect(factory)
        return connected


@implementer(IAgent)
class ForwardedAgent:
    """Makes what ssh complains of the reason for a request's failure.

    ssh takes every connection, and closes it when it does not reach the engine.
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
        """See `IAgent`.  Fails with `TunnelFailed`, too."""
        return Deferred.fromCoroutine(self._request(method, uri, headers, bodyProducer))

    async def _request(
        self, method: bytes, uri: bytes, headers: Headers | None, body: IBodyProducer | None
    ) -> IResponse:
        before = self._forward.complaints
        try:
            response: IResponse = await self._agent.request(method, uri, headers, body)
        except (ResponseNeverReceived, ConnectionClosed) as error:
            # ssh complains before it closes the connection, but the reactor may see the end first.
            await deferLater(self._reactor, _COMPLAINS_WITHIN)
            if self._forward.complaints == before:
                raise
            raise TunnelFailed(self._forward.last_words) from error
        return response
