"""Sending a file into a socket without reading it: sendfile(2).

The bytes do not pass through this process, so a send holds no memory.  Measured over loopback TCP, everything in the
page cache and eight clients: 0.29 s of processor time per GB, where reading and writing chunks takes 0.75.

The call may have to wait for a disk, whatever the socket's mode, so it is made in worker threads, a bounded piece at a
time, on a duplicate of the socket's descriptor: the transport may close its own meanwhile, and the number be given to
the next client.  When the socket is full, the thread is given back, and the reactor tells when there is room again.
So slow clients hold up no thread, however many there are, and a slow disk does not hold up the reactor.
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

# Bytes that one trip to a worker thread sends at most, if the socket takes so much: a disk of 100 MB/s, the slowest
# that matters, is through with it in 40 ms, and then it is another client's turn.  Most often it is the socket that
# ends a trip; the kernel's buffers hold some MB.
PIECE = 4 * 1024 * 1024
# What the kernel says of a file that it cannot send so, of whatever file system (sendfile(2)).
_UNSUITABLE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
# What a lost connection is called, beside the errors that Python has classes for (tcp(7)).
_LOST = (errno.ENOTCONN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)


@implementer(IWriteDescriptor)
class SocketSender(PushProducer):
    """One sending of a file into the socket of a transport, around that.  Call `run` once."""

    def __init__(
        self, consumer: ISocketConsumer, transport: Connection, descriptor: int, workers: Workers, stall: float
    ) -> None:
        """`descriptor`: a duplicate of the transport's, which is closed in the end."""
        super().__init__(consumer, workers.clock, stall)
        self._around = consumer
        self._transport = transport
        # Its interfaces do not tell that a reactor can be asked whom it tells of room.
        self._reactor = cast(Any, transport.reactor)
        self._descriptor = descriptor
        self._socket = Handle(descriptor)
        self._workers = workers
        self._room: Deferred[None] | None = None

    async def run(
        self, handle: FileHandle, start: int, stop: int, available: Callable[[int], Deferred[int]] | None = None
    ) -> None:
        """Send the bytes from `start` up to, not including, `stop`; or some of them: up to `position`.

        The rest of a file that the kernel cannot send so is to be sent in another way.  `available`: see `FileSending`.

        Ends and raises as `Sender.run`, and with `ContentGone` when the file ends before `stop`.
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
            # Or the last use of it in a thread closes it; the connection lives no longer than its last descriptor.
            # Not before the reactor has told all that it heard at once: when a connection is lost, it hears so of both
            # its descriptors, and one that is closed by the time may be that of a new connection, which it would end.
            self._reactor.callLater(0, self._socket.close)

    async def _flushed(self) -> None:
        """What was written to the transport before, the head of the answer, comes first."""
        while self._transport in self._reactor.getWriters():
            # Both are told when there is room; the transport makes use of it.
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
            self._around.went_around(sent)
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
        """The duplicate's, which is open for as long as the reactor knows of it."""
        return self._descriptor

    def doWrite(self) -> None:
        """The socket has room."""
        room, self._room = self._room, None
        if room is not None:
            room.callback(None)

    def connectionLost(self, reason: Failure) -> None:
        """The connection is lost; the transport learns it by itself."""
        self.stopProducing()

    def logPrefix(self) -> str:
        """For the reactor's log."""
        return "k3dreg"


def way_into_socket(consumer: IConsumer, workers: Workers, stall: float) -> SocketSender | None:
    """A sender into the socket that the consumer's bytes go into as they are; None if there is no such socket."""
    if not ISocketConsumer.providedBy(consumer):
        return None
    transport = consumer.way_around()
    descriptor = duplicate_descriptor(transport)
    if descriptor is None:
        return None
    return SocketSender(consumer, cast(Connection, transport), descriptor, workers, stall)


def duplicate_descriptor(transport: object) -> int | None:
    """A descriptor of one's own of the socket of a transport that passes bytes on as they are; None for any other.

    Whoever got it closes it: the connection lives no longer than its last descriptor.
    """
    # A UNIX socket's transport is one, too; that of TLS is another, or says so.
    if not isinstance(transport, Connection) or transport.TLS or not transport.connected:
        return None
    try:
        return os.dup(transport.fileno())
    except OSError:  # there are too many already
        return None
