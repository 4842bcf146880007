"""Send a file into a socket without reading it, by sendfile(2).

The bytes do not pass through this process, so a send needs no buffers.  Measured over loopback TCP with everything in
the page cache and eight clients: 0.29 s of processor time per GB, where reading and writing chunks takes 0.75.

sendfile(2) may block on the disk even if the socket does not block, so worker threads call it, a bounded piece at a
time.  They use a duplicate of the socket's descriptor: the transport may close its own meanwhile, and the kernel may
give its number to the next client.  When the socket is full, the call returns and the reactor reports when there is
room again.  So slow clients occupy no worker thread, and a slow disk does not block the reactor.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IWriteDescriptor
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from k3dreg.streaming.content import ISocketConsumer
from k3dreg.streaming.file_handles import FileHandle, Handle
from k3dreg.streaming.push_producer import ConsumerGone, PushProducer
from k3dreg.streaming.workers import Workers

# Bytes that one call in a worker thread sends at most.  A disk of 100 MB/s reads that in 40 ms; then other clients get
# their turn.  Most calls end earlier, when the socket's buffer of some MB is full.
PIECE = 4 * 1024 * 1024
# Errors for files that the kernel cannot send by sendfile(2), depending on the file system.
_UNSUITABLE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
# Errors of a lost connection (tcp(7)), besides those that Python raises as `ConnectionError` or `TimeoutError`.
_LOST = (errno.ENOTCONN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)


@implementer(IWriteDescriptor)
class SocketSender(PushProducer):
    """Sends one range of a file directly into the socket of a transport.  Call `run` once."""

    def __init__(
        self, consumer: ISocketConsumer, transport: Connection, descriptor: int, workers: Workers, stall: float
    ) -> None:
        """`descriptor`: a duplicate of the transport's, which `run` closes at its end."""
        super().__init__(consumer, workers.clock, stall)
        self._around = consumer
        self._transport = transport
        # Any, because no annotation of `transport.reactor` has both `getWriters` and `callLater`.
        self._reactor = cast(Any, transport.reactor)
        self._descriptor = descriptor
        self._socket = Handle(descriptor)
        self._workers = workers
        self._room: Deferred[None] | None = None

    async def run(
        self, handle: FileHandle, start: int, stop: int, available: Callable[[int], Deferred[int]] | None = None
    ) -> None:
        """Send the bytes from `start` up to, not including, `stop`, or only those up to `position`.

        The latter happens when sendfile(2) does not support the file: the caller sends the rest in another way.
        `available`: as in `FileSending`.  Returns and raises as `Sender.run`; also raises `ContentGone` when the file
        ends before `stop`.
        """
        self.position = start
        try:
            self._register()
            try:
                await self._flushed()
                await self._send(handle, stop, available)
            finally:
                self._unregister()
        finally:
            # Close the duplicate: the connection stays open until its last descriptor is closed.  Wait for the next
            # turn of the reactor: a lost connection is reported for both descriptors in one turn.  If this one were
            # closed before its report, its number could belong to a new connection, which the reactor would then end.
            self._reactor.callLater(0, self._socket.close)

    async def _flushed(self) -> None:
        """Wait until the transport has sent its buffer: the response's headers must precede the file."""
        while self._transport in self._reactor.getWriters():
            # The reactor reports room to this sender and to the transport, which then writes its buffer.
            await self._has_room()

    async def _send(self, handle: FileHandle, stop: int, available: Callable[[int], Deferred[int]] | None) -> None:
        there = stop if available is None else self.position
        while self.position < stop:
            self._raise_if_interrupted()
            if self.position >= there and available is not None:
                there = min(stop, await self._wait(available(self.position)))
            wanted = min(PIECE, there - self.position)
            try:
                sent = await self._wait(self._workers.run(handle.send, self._socket, self.position, wanted))
            except (ConnectionError, TimeoutError) as error:
                raise ConsumerGone("the connection was lost") from error
            except OSError as error:
                if error.errno in _UNSUITABLE:
                    return
                if error.errno in _LOST:
                    raise ConsumerGone("the connection was lost") from error
                raise
            self.position += sent
            self._around.bypassed(sent)
            if sent < wanted and self.position < stop:
                await self._has_room()

    async def _has_room(self) -> None:
        self._raise_if_interrupted()
        self._room = Deferred()
        self._reactor.addWriter(self)
        try:
            await self._wait_for_consumer(self._room)
        finally:
            self._room = None
            self._reactor.removeWriter(self)

    # -- what the reactor calls -----------------------------------------------------------------

    def fileno(self) -> int:
        """Return the duplicate descriptor, which stays open as long as the reactor watches it."""
        return self._descriptor

    def doWrite(self) -> None:
        """Go on sending: the socket has room."""
        room, self._room = self._room, None
        if room is not None:
            room.callback(None)

    def connectionLost(self, reason: Failure) -> None:
        """End the sending: the connection is lost.  The reactor tells the transport separately."""
        self.stopProducing()

    def logPrefix(self) -> str:
        """Return the prefix of the reactor's log lines."""
        return "k3dreg"


def way_into_socket(consumer: IConsumer, workers: Workers, stall: float) -> SocketSender | None:
    """Return a sender into the consumer's socket; None if the consumer does not write unchanged bytes to a socket."""
    if not ISocketConsumer.providedBy(consumer):
        return None
    transport = consumer.bypass_transport()
    descriptor = duplicate_descriptor(transport)
    if descriptor is None:
        return None
    return SocketSender(consumer, cast(Connection, transport), descriptor, workers, stall)


def duplicate_descriptor(transport: object) -> int | None:
    """Return a duplicate of a transport's socket descriptor; None if the transport changes bytes, as TLS does.

    None also when the connection is lost or no more files can be opened.  The caller must close the duplicate, because
    the connection stays open until its last descriptor is closed.
    """
    # The transport of a UNIX socket is a `Connection`, too.  That of TLS is either another class or sets `TLS`.
    if not isinstance(transport, Connection) or transport.TLS or not transport.connected:
        return None
    try:
        return os.dup(transport.fileno())
    except OSError:  # too many open files
        return None
