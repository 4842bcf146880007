"""Bodies of HTTP responses, read at the reader's pace."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.iweb import IResponse

from k3dreg.oci.errors import EngineError, EngineSilent, EngineUnavailable
from k3dreg.streaming.content import IByteStream

# The most that one `read` returns, in bytes, give or take a chunk: large enough that a trip to a worker thread
# (about 0.1 ms) is small beside the hashing and writing of a batch (about 0.5 ms), and small beside what a daemon
# has in memory with some streams under way.
BATCH = 256 * 1024
# Above this many bytes that nobody has read yet the transport is paused.  Two batches: one is worked on while
# the next one arrives.
HIGH_WATER = 2 * BATCH
# At or below this many it is resumed: early enough that a steady reader never waits for the pause to be lifted.
LOW_WATER = BATCH


class ResponseBody(Protocol):
    """The body of `response`, which must have been requested unbuffered.

    `silence` is how long, in seconds, a reader waits for the next byte; while nobody reads, no time counts.
    `what` completes the sentence "the connection was lost in the middle of ...".
    `broke` is called once when it ends by a lost connection or by silence.

    Whoever makes one reads it to its end or closes it: until then the connection is held.
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
        self._clock = clock
        self._silence = silence
        self._what = what
        self._broke = broke
        self._chunks: deque[bytes] = deque()
        self._unread = 0  # bytes in _chunks
        self._paused = False
        self._reader: Deferred[None] | None = None
        self._least = 1  # bytes that it waits for
        self._waiting_since = 0.0
        self._timer: IDelayedCall | None = None
        self._ended = False
        self._error: Exception | None = None
        response.deliverBody(self)

    # -- the reader's side ----------------------------------------------------------------------

    async def read(self, least: int = 1) -> bytes:
        """The next bytes, all that have arrived up to about `BATCH`; b"" at the end.

        It waits until at least `least` bytes, of at most `BATCH`, have arrived, or the end: each time that a reader is
        woken costs as much as receiving a chunk.
        Raises `EngineSilent`, or `EngineUnavailable` after the last bytes that came before the connection was
        lost.  Cancelling closes the stream; whoever reads a closed stream is cancelled.
        """
        if self._unread < least and not self._ended:
            self._least = least
            await self._arrival()
        if self._chunks:
            return self._take()
        if self._error is not None:
            raise self._error
        return b""

    def close(self) -> None:
        """Give up the rest and close the connection.  Safe at any time, any number of times."""
        self._end(CancelledError())

    def _arrival(self) -> Deferred[None]:
        if self._reader is not None:
            raise RuntimeError("a stream has one reader at a time")
        self._reader = Deferred(lambda _: self.close())
        self._waiting_since = self._clock.seconds()
        if self._timer is None:
            self._timer = self._clock.callLater(self._silence, self._check_silence)
        return self._reader

    def _take(self) -> bytes:
        batch = [self._chunks.popleft()]
        size = len(batch[0])
        while self._chunks and size < BATCH:
            batch.append(self._chunks.popleft())
            size += len(batch[-1])
        self._unread -= size
        if self._paused and self._unread <= LOW_WATER:
            self._paused = False
            if not self._ended:
                self._producer.resumeProducing()
        return batch[0] if len(batch) == 1 else b"".join(batch)

    def _check_silence(self) -> None:
        """One timer for many reads: a new one for each would cost as much as the read itself."""
        self._timer = None
        if self._reader is None:
            return
        left = self._waiting_since + self._silence - self._clock.seconds()
        if left > 0:
            self._timer = self._clock.callLater(left, self._check_silence)
        else:
            self._end(EngineSilent(f"the engine sent nothing for {self._silence:.0f} s in the middle of {self._what}"))

    # -- the connection's side ------------------------------------------------------------------

    @property
    def _producer(self) -> IPushProducer:
        # What `deliverBody` gives its protocol is a proxy of the transport, which can be paused and resumed.
        return cast(IPushProducer, self.transport)

    def dataReceived(self, data: bytes) -> None:
        """Bytes arrived."""
        if self._ended:
            return
        self._chunks.append(data)
        self._unread += len(data)
        self._received()
        if self._unread > HIGH_WATER and not self._ended:
            # Paused already or not: `deliverBody` resumes the transport behind our back after it has handed over
            # what was buffered, and what is in one received piece still comes after a pause.
            self._paused = True
            self._producer.pauseProducing()

    def _received(self) -> None:
        if self._reader is not None:
            if self._unread >= self._least:
                self._wake()
            else:
                self._waiting_since = self._clock.seconds()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body ended: `ResponseDone` if it is whole.

        A body without length and without chunks (`PotentialDataLoss`) could have been cut: nothing that matters
        here is ever sent so, and to take it for whole would be to guess.
        """
        if reason.check(ResponseDone):
            self._end(None)
        else:
            self._end(EngineUnavailable(f"the connection to the engine was lost in the middle of {self._what}"))

    # -- the four ends: done, failed, reader gone, cancelled ------------------------------------

    def _end(self, error: Exception | None) -> None:
        """Everything that ends a stream comes by here, and only the first to come counts.

        What had arrived is still read after `None` and after a lost connection; not after a close or silence.
        """
        if self._ended:
            if isinstance(error, CancelledError) and self._chunks:  # closed after its end: the rest is not wanted
                self._forget(error)
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if isinstance(error, CancelledError | EngineSilent):
            self._forget(error)
            if self.transport is not None:
                # Nothing of ours is left to be sent, so this closes at once and the engine sees it.
                self.transport.loseConnection()
        else:
            self._error = error
        if isinstance(error, EngineUnavailable) and self._broke is not None:
            self._broke()
        self._wake()

    def _forget(self, error: Exception) -> None:
        self._error = error
        self._chunks.clear()
        self._unread = 0

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.callback(None)


async def read_whole(stream: IByteStream, limit: int) -> bytes:
    """All of a small body.  Raises `EngineError` if it has more than `limit` bytes, and what `read` raises."""
    parts: list[bytes] = []
    size = 0
    while data := await stream.read():
        parts.append(data)
        size += len(data)
        if size > limit:
            stream.close()
            raise EngineError(f"the engine's answer has more than {limit} bytes")
    return b"".join(parts)
