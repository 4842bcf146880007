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

# Seconds in which a process that has connected says what it has to.
ANSWER_WITHIN = 2.0


class DirectoryReceiver(Factory):
    """Takes the directories of the one process that knows the secret.

    The sender is given the `name` of the socket and the `secret`.  Descriptors are the receiver's own until `take`; any
    other process's are closed at once.
    """

    noisy = False

    def __init__(self, reactor: Any) -> None:
        """`reactor` provides `IReactorUNIX` and `IReactorTime`.  Listens until `close`.  Raises `CannotListenError`."""
        self.name = f"k3dreg-{secrets.token_hex(16)}"
        self.secret = secrets.token_hex(HALF)
        self.clock: IReactorTime = reactor
        self.connections: set[DirectoryConnection] = set()
        self._handles: Sequence[Handle] = ()
        self._received: Outcome[int] = Outcome()
        sockets: IReactorUNIX = reactor
        self._port = sockets.listenUNIX(f"\0{self.name}", self)

    def buildProtocol(self, addr: IAddress | None) -> DirectoryConnection:
        """See `IProtocolFactory`."""
        return DirectoryConnection(self)

    def received(self) -> Deferred[int]:
        """Fire with the number of directories once they are here, or fail as `fail` says."""
        return self._received.wait()

    def succeed(self, handles: Sequence[Handle]) -> None:
        """Keep what the sender has sent, if it comes for the first time and in time."""
        if self._received.is_set:
            _close(handles)
            return
        self._handles = handles
        self._received.succeed(len(handles))

    def fail(self, reason: str) -> None:
        """Make `received` fail with `FilesUnreachable`, unless the directories are here."""
        self._received.fail(FilesUnreachable(reason))

    def check(self) -> None:
        """Raise `FilesUnreachable` unless the directories can be used.  For worker threads.

        A security module of the machine (AppArmor, SELinux) may forbid that.
        """
        try:
            for number, handle in enumerate(self._handles):
                with handle.use() as descriptor:
                    path = f"/proc/self/fd/{descriptor}"
                    os.stat(f"{path}/.")
                    if not number:  # others may be passed through by every user, but listed by root alone
                        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise FilesUnreachable(
                f"the helper container passed Docker's directories, but k3dreg cannot open them: {error.strerror}"
            ) from error

    def take(self) -> Sequence[Handle]:
        """Return the directories, in the order in which they were sent.  The caller closes them."""
        handles, self._handles = self._handles, ()
        return handles

    async def close(self) -> None:
        """Listen no more, and close every connection and every directory that was not taken."""
        _close(self.take())
        for connection in list(self.connections):
            connection.refuse()
        await maybeDeferred(self._port.stopListening)


@implementer(IFileDescriptorReceiver)
class DirectoryConnection(Protocol):
    """A process that has connected: the sender, or one that has found the name out.

    In the host's own network namespace every process can connect.  So its user is checked first, and nothing of the
    secret is shown to a process that does not know its own half.
    """

    def __init__(self, receiver: DirectoryReceiver) -> None:
        self._receiver = receiver
        self._shown = b""
        self._knows_secret = False
        self._is_over = False
        self._handles: list[Handle] = []

    def connectionMade(self) -> None:
        """See `IProtocol`."""
        self._receiver.connections.add(self)
        self._timeout = self._receiver.clock.callLater(ANSWER_WITHIN, self.refuse)
        if peer_user(self._transport().getHandle()) not in (0, os.geteuid()):
            self.refuse()

    def fileDescriptorReceived(self, descriptor: int) -> None:
        """Own the descriptor.  Twisted calls this before `dataReceived` with the bytes that came along."""
        handle = Handle(descriptor)
        if self._is_over or not self._knows_secret:
            handle.close()
            self.refuse()
            return
        os.set_inheritable(descriptor, False)
        self._handles.append(handle)

    def dataReceived(self, data: bytes) -> None:
        """The sender's half of the secret comes first.  A byte comes with the directories, which are all here then."""
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
        """End the connection, and listen to nothing that is still read from it."""
        if not self._is_over:
            self._is_over = True
            self._transport().abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        self._is_over = True
        self._receiver.connections.discard(self)
        if self._timeout.active():
            self._timeout.cancel()
        if self._knows_secret:  # ignored if the directories have come
            self._receiver.fail("the helper container passed no directories")

    def _transport(self) -> Any:
        """The transport, which is `IUNIXTransport` and `ITCPTransport`."""
        return self.transport


def _close(handles: Sequence[Handle]) -> None:
    for handle in handles:
        handle.close()
