"""Read the bodies of HTTP responses at the reader's pace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IResponse

from k3dreg.oci.errors import EngineError, EngineSilent, EngineUnavailable
from k3dreg.streaming.byte_stream import ByteStream
from k3dreg.streaming.content import IByteStream

# Types of a command's output, which the engine ends by closing the connection (Engine API, "Start an exec instance").
_OUTPUTS = ("application/vnd.docker.raw-stream", "application/vnd.docker.multiplexed-stream")


class ResponseBody(ByteStream):
    """The body of `response`, whose request must have been made with `unbuffered=True`.

    `silence`: seconds for which a `read` waits for the next byte.  `what` completes the sentence "the connection was
    lost in the middle of ...".  `broke` is called once if the body ends by a lost connection or by silence.

    `read` raises `EngineSilent` after `silence` seconds without a byte, and `EngineUnavailable` when the connection
    was lost.  The caller must read the body to its end or close it; the connection is in use until then.
    """

    def __init__(
        self,
        response: IResponse,
        clock: IReactorTime,
        *,
        silence: float,
        what: str,
        broke: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(self._flow_or_stop)
        self._clock = clock
        self._silence = silence
        self._what = what
        self._broke = broke
        self._waiting_since = 0.0
        self._timer: IDelayedCall | None = None
        kind = (response.headers.getRawHeaders("Content-Type") or [""])[0]
        self._receiver = _Receiver(self, what, ends_with_connection=kind in _OUTPUTS)
        response.deliverBody(self._receiver)

    async def read(self, least: int = 1) -> bytes:
        """Return the next bytes, as `ByteStream.read`.

        Raises `EngineSilent` after `silence` seconds without a byte, and `EngineUnavailable` for a lost connection.
        """
        if self._unread < least and not self._ended:
            self._waiting_since = self._clock.seconds()
            # One timer serves many reads: a new one for each would cost as much as the read itself.
            if self._timer is None:
                self._timer = self._clock.callLater(self._silence, self._check_silence)
        return await super().read(least)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes that arrived, as `ByteStream.write`, and restart the time limit for silence."""
        self._waiting_since = self._clock.seconds()
        super().write(data)
        if self._stopped:
            # Stop the transport again: `deliverBody` resumes it after it has delivered the bytes that came with the
            # response's headers, and the rest of a received piece is still delivered after a pause.
            self._flow_or_stop(False)

    def close(self) -> None:
        """Close the stream, and the connection unless the body has ended.  Safe at any time, any number of times."""
        had_ended = self._ended
        super().close()
        if not had_ended:
            self._receiver.lose()

    def _check_silence(self) -> None:
        self._timer = None
        if self._reader is None:
            return
        left = self._waiting_since + self._silence - self._clock.seconds()
        if left > 0:
            self._timer = self._clock.callLater(left, self._check_silence)
            return
        self._drop(EngineSilent(f"the engine sent nothing for {self._silence:.0f} s in the middle of {self._what}"))
        self._receiver.lose()

    def _finish(self, error: Exception | None) -> None:
        if not self._ended:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if isinstance(error, EngineUnavailable) and self._broke is not None:
                self._broke()
        super()._finish(error)

    def _flow_or_stop(self, on: bool) -> None:
        # `deliverBody` gives its protocol a proxy of the transport, which can be paused and resumed.
        transport = cast(Any, self._receiver.transport)
        if on:
            transport.resumeProducing()
        else:
            transport.pauseProducing()


class _Receiver(Protocol):
    """Passes the bytes that Twisted delivers to a stream."""

    def __init__(self, stream: ByteStream, what: str, *, ends_with_connection: bool) -> None:
        self._stream = stream
        self._what = what
        self._ends_with_connection = ends_with_connection

    def dataReceived(self, data: bytes) -> None:
        self._stream.write(data)
        self._stream.arrived()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End the stream: complete for `ResponseDone`, else broken.

        `PotentialDataLoss`, for a body with neither a length nor chunks, counts as broken: it may have been truncated.
        Engines send only the output of commands in this form.
        """
        if reason.check(ResponseDone) or (reason.check(PotentialDataLoss) and self._ends_with_connection):
            self._stream.end()
        else:
            self._stream.end(EngineUnavailable(f"the connection to the engine was lost in the middle of {self._what}"))

    def lose(self) -> None:
        """Close the connection.  The request was sent whole, so it closes at once and the engine stops sending."""
        if self.transport is not None:
            self.transport.loseConnection()


async def read_whole(stream: IByteStream, limit: int) -> bytes:
    """Return all bytes of a small body.

    Raises `EngineError`, and closes the stream, if the body has more than `limit` bytes.  Raises what `read` raises.
    """
    parts: list[bytes] = []
    size = 0
    while data := await stream.read():
        parts.append(data)
        size += len(data)
        if size > limit:
            stream.close()
            raise EngineError(f"the engine's answer has more than {limit} bytes")
    return b"".join(parts)
