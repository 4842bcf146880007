"""The rest of a body, taken out of its connection by a worker thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from k3dreg.oci.errors import BadRequest
from k3dreg.streaming.content import IThreadRead
from k3dreg.streaming.file_handles import Handle
from k3dreg.streaming.outcome import Outcome
from k3dreg.streaming.socket_reader import take
from k3dreg.streaming.workers import Workers


class Decoder(Protocol):
    """What takes the framing of a body away, e.g. `ChunkedDecoder`."""

    piece: Callable[[bytes | memoryview], None]
    end: Callable[[bytes], None]

    def dataReceived(self, data: bytes | memoryview) -> None: ...


class SocketConnection(Protocol):
    """The connection that a body comes by, which reads nothing meanwhile."""

    def taken(self, count: int, more: list[bytes], end: bytes | None, error: BadRequest | None) -> None:
        """It may read again.

        `count` bytes of the body were taken; `more` are some that were received and are still to be read.  `end`:
        the body is complete, and these bytes came after it.  `error`: it is no body.
        """


def run_taking(
    workers: Workers, taking: IThreadRead, write: Callable[[memoryview], object], most: int
) -> Deferred[int]:
    """Let a worker run it, and give it back when he has; how many bytes it was.  Fails with what `write` raises.

    Cancelling gives up the answer, not the work.
    """
    done: Outcome[int] = Outcome()

    def ended(result: int | Failure) -> None:
        taking.give_back()
        if isinstance(result, Failure):
            done.fail(cast(BaseException, result.value))
        else:
            done.succeed(result)

    workers.run(taking.run, write, most).addBoth(ended)
    return done.wait()


class SocketBody:
    """See `IThreadRead`.  `run` has the decoder for itself."""

    def __init__(self, connection: SocketConnection, decoder: Decoder, socket: Handle, patience: float = 0.0) -> None:
        """`socket` belongs to it from now on.  `patience`: see `take`."""
        self._connection = connection
        self._decoder = decoder
        self._socket = socket
        self._patience = patience
        self._count = 0
        self._more: list[bytes] = []
        self._end: bytes | None = None
        self._error: BadRequest | None = None
        # Where in the buffer the content is that was received together.
        self._view = memoryview(b"")
        self._filled = 0

    def run(self, write: Callable[[memoryview], object], most: int) -> int:
        """See `IThreadRead`."""
        decoder = self._decoder
        piece, end = decoder.piece, decoder.end
        decoder.piece, decoder.end = self._add, self._finish

        def give(received: memoryview) -> bool:
            self._view, self._filled = received, 0
            try:
                decoder.dataReceived(received)
            except BadRequest as error:
                self._error = error
            content = received[: min(self._filled, most - self._count)]
            if self._filled > len(content):
                self._more.append(bytes(received[len(content) : self._filled]))
            self._count += len(content)
            if content:
                write(content)
            return self._end is None and self._error is None and not self._more

        try:
            take(self._socket, give, self._patience)
        finally:
            decoder.piece, decoder.end = piece, end
            self._view = memoryview(b"")
        return self._count

    def give_back(self) -> None:
        """See `IThreadRead`."""
        self._socket.close()
        self._connection.taken(self._count, self._more, self._end, self._error)

    def _add(self, piece: bytes | memoryview) -> None:
        """Move it to what came before it: what was between them was framing."""
        stop = self._filled + len(piece)
        self._view[self._filled : stop] = piece
        self._filled = stop

    def _finish(self, rest: bytes) -> None:
        self._end = rest
