"""Receive open descriptors from the program of a helper container, on an abstract UNIX socket.

`directory_sender` has the sender's half of the protocol.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IFileDescriptorReceiver, IReactorTime, IReactorUNIX
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from k3dreg.engine_files.directory_sender import HALF, peer_user
from k3dreg.oci.errors import FilesUnreachable
from k3dreg.streaming.file_handles import Handle
from k3dreg.streaming.outcome import Outcome

# Seconds after which a connection is closed.  The sender needs some milliseconds; without a limit, any process in the
# network namespace could keep connections open.
ANSWER_WITHIN = 2.0


class DescriptorReceiver(Factory):
    """A listening socket that accepts descriptors from the process that knows the secret.

    The caller passes `name` (of the socket) and `secret` to the sender, waits for `received`, and calls `take`.  Until
    then, `handles` are the descriptors that have arrived.  The receiver closes descriptors that were not taken, and at
    once those of any other process.  The caller must call `close`.
    """

    noisy = False

    def __init__(self, reactor: Any) -> None:
        """Listen until `close`.  `reactor` provides `IReactorUNIX` and `IReactorTime`.  Raises `CannotListenError`."""
        self.name = f"k3dreg-{secrets.token_hex(16)}"
        self.secret = secrets.token_hex(HALF)
        self.clock: IReactorTime = reactor
        self.connections: set[DescriptorConnection] = set()
        self.handles: Sequence[Handle] = ()
        self._received: Outcome[int] = Outcome()
        sockets: IReactorUNIX = reactor
        self._port = sockets.listenUNIX(f"\0{self.name}", self)

    def buildProtocol(self, addr: IAddress | None) -> DescriptorConnection:
        """Return the protocol of a new connection."""
        return DescriptorConnection(self)

    def received(self) -> Deferred[int]:
        """Fire with the number of descriptors when they have arrived, or fail as `fail` says."""
        return self._received.wait()

    def succeed(self, handles: Sequence[Handle]) -> None:
        """Keep the descriptors that the sender has sent; close them if `received` has fired already."""
        if self._received.is_set:
            _close(handles)
            return
        self.handles = handles
        self._received.succeed(len(handles))

    def fail(self, reason: str) -> None:
        """Make `received` fail with `FilesUnreachable`, unless the descriptors have arrived."""
        self._received.fail(FilesUnreachable(reason))

    def take(self) -> Sequence[Handle]:
        """Return the descriptors in the order in which they were sent.  The caller must close them."""
        handles, self.handles = self.handles, ()
        return handles

    async def close(self) -> None:
        """Stop listening, and close every connection and every descriptor that was not taken.  Idempotent."""
        _close(self.take())
        for connection in list(self.connections):
            connection.refuse()
        await maybeDeferred(self._port.stopListening)


@implementer(IFileDescriptorReceiver)
class DescriptorConnection(Protocol):
    """A connection of the sender, or of another process that has found the socket's name.

    In the host's own network namespace every process can connect.  So the connection checks the process's user first,
    and sends its half of the secret only to a process that has sent the other half.
    """

    def __init__(self, receiver: DescriptorReceiver) -> None:
        self._receiver = receiver
        self._shown = b""
        self._knows_secret = False
        self._is_over = False
        self._handles: list[Handle] = []

    def connectionMade(self) -> None:
        """Start the timeout, and refuse a process of a user other than root and this process's own."""
        self._receiver.connections.add(self)
        self._timeout = self._receiver.clock.callLater(ANSWER_WITHIN, self.refuse)
        if peer_user(self._transport().getHandle()) not in (0, os.geteuid()):
            self.refuse()

    def fileDescriptorReceived(self, descriptor: int) -> None:
        """Keep the descriptor, or close it if the sender has not yet shown the secret.

        Twisted calls this before `dataReceived` with the bytes of the same message.
        """
        handle = Handle(descriptor)
        if self._is_over or not self._knows_secret:
            handle.close()
            self.refuse()
            return
        os.set_inheritable(descriptor, False)
        self._handles.append(handle)

    def dataReceived(self, data: bytes) -> None:
        """Check the sender's half of the secret, which comes first.

        Later bytes come with the descriptors: Twisted has passed all of them to `fileDescriptorReceived` by then.
        """
        if self._is_over:
            return
        if self._knows_secret:
            handles, self._handles = self._handles, []
            self._receiver.succeed(handles)
            self.refuse()
            return
        self._shown += data
        if len(self._shown) < HALF:
            return
        secret = self._receiver.secret.encode("ascii")
        if not hmac.compare_digest(self._shown, secret[:HALF]):
            self.refuse()
            return
        self._knows_secret = True
        self._transport().write(secret[HALF:])

    def refuse(self) -> None:
        """Abort the connection, and ignore what the transport still reads from it."""
        if not self._is_over:
            self._is_over = True
            self._transport().abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Stop the timeout.  Without descriptors from the sender, `received` of the receiver fails."""
        self._is_over = True
        self._receiver.connections.discard(self)
        if self._timeout.active():
            self._timeout.cancel()
        if self._knows_secret:  # has no effect after `succeed`
            self._receiver.fail("the helper container passed nothing")

    def _transport(self) -> Any:
        """Return the transport, which provides `IUNIXTransport` and `ITCPTransport`."""
        return self.transport


def _close(handles: Sequence[Handle]) -> None:
    for handle in handles:
        handle.close()
