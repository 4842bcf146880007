"""Receive open directories from the program `directory_sender`, on an abstract UNIX socket."""

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


class DirectoryReceiver(Factory):
    """A listening socket that accepts directories from the process that knows the secret.

    The caller passes `name` (of the socket) and `secret` to the sender, waits for `received`, and calls `take`.  The
    receiver closes descriptors that were not taken, and at once those of any other process.  The caller must call
    `close`.
    """

    noisy = False

    def __init__(self, reactor: Any) -> None:
        """Listen until `close`.  `reactor` provides `IReactorUNIX` and `IReactorTime`.  Raises `CannotListenError`."""
        self.name = f"k3dreg-{secrets.token_hex(16)}"
        self.secret = secrets.token_hex(HALF)
        self.clock: IReactorTime = reactor
        self.connections: set[DirectoryConnection] = set()
        self._handles: Sequence[Handle] = ()
        self._received: Outcome[int] = Outcome()
        sockets: IReactorUNIX = reactor
        self._port = sockets.listenUNIX(f"\0{self.name}", self)

    def buildProtocol(self, addr: IAddress | None) -> DirectoryConnection:
        """Return the protocol of a new connection."""
        return DirectoryConnection(self)

    def received(self) -> Deferred[int]:
        """Fire with the number of directories when they have arrived, or fail as `fail` says."""
        return self._received.wait()

    def succeed(self, handles: Sequence[Handle]) -> None:
        """Keep the directories that the sender has sent; close them if `received` has fired already."""
        if self._received.is_set:
            _close(handles)
            return
        self._handles = handles
        self._received.succeed(len(handles))

    def fail(self, reason: str) -> None:
        """Make `received` fail with `FilesUnreachable`, unless the directories have arrived."""
        self._received.fail(FilesUnreachable(reason))

    def check(self) -> None:
        """Raise `FilesUnreachable` unless this process can open the directories.  For worker threads.

        A security module of the machine (AppArmor, SELinux) may forbid it to.
        """
        try:
            for number, handle in enumerate(self._handles):
                with handle.use() as descriptor:
                    path = f"/proc/self/fd/{descriptor}"
                    os.stat(f"{path}/.")
                    # Only the first: k3dreg may have the right to enter the others, such as `overlay2`, but not to list
                    # them, which it never does.
                    if not number:
                        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise FilesUnreachable(
                f"the helper container passed Docker's directories, but k3dreg cannot open them: {error.strerror}"
            ) from error

    def take(self) -> Sequence[Handle]:
        """Return the directories in the order in which they were sent.  The caller must close them."""
        handles, self._handles = self._handles, ()
        return handles

    async def close(self) -> None:
        """Stop listening, and close every connection and every directory that was not taken."""
        _close(self.take())
        for connection in list(self.connections):
            connection.refuse()
        await maybeDeferred(self._port.stopListening)


@implementer(IFileDescriptorReceiver)
class DirectoryConnection(Protocol):
    """A connection of the sender, or of another process that has found the socket's name.

    In the host's own network namespace every process can connect.  So the connection checks the process's user first,
    and sends its half of the secret only to a process that has sent the other half.
    """

    def __init__(self, receiver: DirectoryReceiver) -> None:
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

        Later bytes come with the directories: Twisted has passed all of them to `fileDescriptorReceived` by then.
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
        """Stop the timeout.  Without directories from the sender, `received` of the receiver fails."""
        self._is_over = True
        self._receiver.connections.discard(self)
        if self._timeout.active():
            self._timeout.cancel()
        if self._knows_secret:  # has no effect after `succeed`
            self._receiver.fail("the helper container passed no directories")

    def _transport(self) -> Any:
        """Return the transport, which provides `IUNIXTransport` and `ITCPTransport`."""
        return self.transport


def _close(handles: Sequence[Handle]) -> None:
    for handle in handles:
        handle.close()
