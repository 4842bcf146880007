"""A connection to an engine on another machine, through the ssh client of this one.

What Docker's own client does for `ssh://` (`cli/connhelper`): each connection is a process
`ssh HOST docker system dial-stdio`, whose standard input and output are the engine's socket.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any, cast

from attrs import frozen
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost, ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IDelayedCall,
    IProcessTransport,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from k3dreg.config.engine_address import EngineAddress
from k3dreg.reporting.logger import make_logger

log = make_logger()

# Seconds that a process whose pipes were closed may take to end before it is told to.
_GRACE = 2.0
# Bytes of what ssh complains that are kept: its last lines are the ones that say why.
_LONGEST_COMPLAINT = 4096


class TunnelFailed(ConnectionLost):
    """ssh ended; the text says why, in its own words."""

    def __str__(self) -> str:
        return str(self.args[0])


@implementer(IAddress)
@frozen
class ProcessAddress:
    """The other end of a pipe."""

    command: tuple[str, ...]


def ssh_command(address: EngineAddress, timeout: float) -> tuple[str, ...]:
    """The words that connect to the engine at `address`; `timeout` in seconds is for reaching the other machine.

    Never asks for a password (BatchMode): nobody is there to type one.  A network that dies is noticed within a minute
    (ServerAlive…).
    """
    words = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, round(timeout))}"]
    words += ["-o", "ServerAliveInterval=20", "-o", "ServerAliveCountMax=3"]
    words += ["-l", address.user] if address.user else []
    words += ["-p", str(address.port)] if address.port else []
    # The far shell takes the rest apart once more.
    there = ["--host", f"unix://{_quote(address.path)}"] if address.path else []
    return (*words, "--", address.host, "docker", *there, "system", "dial-stdio")


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


@implementer(IStreamClientEndpoint)
class ProcessEndpoint:
    """Connects by starting `command`, found in `PATH`, with this process's environment.

    Unlike Twisted's endpoint of that name its transport can be aborted, the process is ended with its connection, and
    what it wrote to standard error is why the connection was lost.
    """

    def __init__(self, reactor: Any, command: Sequence[str]) -> None:
        self._reactor = reactor
        self._command = tuple(command)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """There is nothing to wait for: whether the other side is reached shows in the first answer."""
        protocol = protocolFactory.buildProtocol(ProcessAddress(self._command))
        if protocol is None:
            return fail(ConnectionLost("no protocol"))
        tunnel = _Tunnel(self._reactor, protocol, self._command)
        try:
            self._reactor.spawnProcess(tunnel, self._command[0], self._command, env=None)
        except OSError as error:
            return fail(TunnelFailed(f"{self._command[0]} cannot be started: {error.strerror}"))
        return succeed(protocol)


class _Tunnel(ProcessProtocol):
    def __init__(self, reactor: Any, protocol: IProtocol, command: tuple[str, ...]) -> None:
        self._reactor = reactor
        self._protocol = protocol
        self._command = command
        self._complaint = b""
        self._closing: IDelayedCall | None = None
        self._asked = False

    @property
    def _process(self) -> IProcessTransport:
        assert self.transport is not None
        return self.transport

    def connectionMade(self) -> None:
        self._protocol.makeConnection(cast(ITransport, _Transport(self, self.transport, self._command)))

    def outReceived(self, data: bytes) -> None:
        if not self._asked:
            self._protocol.dataReceived(data)

    def errReceived(self, data: bytes) -> None:
        self._complaint = (self._complaint + data)[-_LONGEST_COMPLAINT:]

    def close(self) -> None:
        """What was written is still sent; nothing that comes is wanted."""
        if self._asked:
            return
        self._asked = True
        self._process.closeStdin()
        self._closing = self._reactor.callLater(_GRACE, self.abort, "TERM")

    def abort(self, signal: str = "KILL") -> None:
        self._asked = True
        self._closing = None if signal == "TERM" else self._closing
        with contextlib.suppress(ProcessExitedAlready):
            self._process.signalProcess(signal)
        self._process.loseConnection()

    def processEnded(self, reason: Failure) -> None:
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        complaint = self._complaint.decode(errors="replace").strip()
        if self._asked or (reason.check(ProcessDone) and not complaint):
            self._protocol.connectionLost(Failure(ConnectionDone()))
            return
        if complaint:
            log.warn("{command}: {complaint}", command=self._command[0], complaint=complaint)
        last = (
            complaint.rpartition("\n")[2].strip() or f"it ended with status {getattr(reason.value, 'exitCode', None)}"
        )
        # Nodes are shown this text; paths of this machine are not for them.
        self._protocol.connectionLost(Failure(TunnelFailed(re.sub(r"(?<!\w)/\S+", "…", last)[:200])))


@implementer(ITransport, IConsumer, IPushProducer)
class _Transport:
    """A process's pipes as the transport of a connection."""

    disconnecting = False

    def __init__(self, tunnel: _Tunnel, process: Any, command: tuple[str, ...]) -> None:
        self._tunnel = tunnel
        self._process = process
        self._address = ProcessAddress(command)

    def write(self, data: bytes) -> None:
        self._process.write(data)

    def writeSequence(self, data: Any) -> None:
        self._process.writeSequence(data)

    def loseConnection(self) -> None:
        self.disconnecting = True
        self._tunnel.close()

    def abortConnection(self) -> None:
        self.disconnecting = True
        self._tunnel.abort()

    def getPeer(self) -> IAddress:
        return self._address

    def getHost(self) -> IAddress:
        return self._address

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._process.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self._process.unregisterProducer()

    def pauseProducing(self) -> None:
        self._process.pauseProducing()

    def resumeProducing(self) -> None:
        self._process.resumeProducing()

    def stopProducing(self) -> None:
        self.loseConnection()
