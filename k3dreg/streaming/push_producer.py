"""What every sending to a consumer has in common: it is waited for, interrupted, and ends in one place."""

from __future__ import annotations

from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer, IReactorTime
from zope.interface import implementer

T = TypeVar("T")

# Seconds in which a consumer must take a chunk.  containerd gives up a pull after five minutes without a byte
# (`image_pull_progress_timeout`), so nobody waits at the other end any more.
STALL = 300.0


class ConsumerGone(Exception):
    """The consumer wants no more bytes: its connection is lost.  Nothing failed here, and nobody is left to tell."""


class ConsumerStalled(ConsumerGone):
    """The consumer took nothing for so long that it is given up; its connection is the caller's to abort."""


class _Raised(Exception):
    """Stands for the error that ended the sending, once it was raised."""


@implementer(IPushProducer)
class PushProducer:
    """A producer of one consumer, whose every wait can be interrupted."""

    def __init__(self, consumer: IConsumer, clock: IReactorTime, stall: float) -> None:
        """`stall`: seconds in which the consumer must take a piece."""
        self._consumer = consumer
        self._clock = clock
        self._stall = stall
        self.position = 0  # of the first byte that the consumer was not given
        self._error: Exception | None = None
        self._interruptible: Deferred[object] | None = None

    def interrupt(self, error: Exception) -> None:
        """End the sending with `error`, at once if it is waiting.  Only the first call counts."""
        if self._error is None:
            self._error = error
            if self._interruptible is not None:
                self._interruptible.cancel()

    # -- what the consumer calls ----------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The consumer has enough for now."""

    def resumeProducing(self) -> None:
        """The consumer takes more."""

    def stopProducing(self) -> None:
        """The consumer is gone."""
        self.interrupt(ConsumerGone("the connection was lost"))

    # -- waiting --------------------------------------------------------------------------------

    async def _wait(self, deferred: Deferred[T]) -> T:
        """Wait for `deferred`, or until interrupted."""
        self._interruptible = deferred  # type: ignore[assignment]  # only ever cancelled
        try:
            return await deferred
        except CancelledError:
            self._raise_if_interrupted()
            raise
        finally:
            self._interruptible = None

    async def _wait_for_consumer(self, ready: Deferred[None]) -> None:
        """Wait until the consumer is ready, but no longer than it may stall."""
        timer = self._clock.callLater(
            self._stall, self.interrupt, ConsumerStalled(f"the client accepted no bytes for {self._stall:.0f} s")
        )
        try:
            await self._wait(ready)
        finally:
            if timer.active():
                timer.cancel()

    def _raise_if_interrupted(self) -> None:
        if self._error is not None:
            # Only once: an error that is raised refers to its frames, and those refer to the producer.  If the
            # producer referred to the error, the cyclic garbage collector alone could free the buffers of all these.
            error, self._error = self._error, _Raised()
            try:
                raise error from None
            finally:
                del error

    # twisted.web's Request has no channel once its connection is lost, and fails on any further word.

    def _register(self) -> None:
        if getattr(self._consumer, "channel", self) is None:
            raise ConsumerGone("the connection was lost")
        self._consumer.registerProducer(self, True)

    def _unregister(self) -> None:
        if getattr(self._consumer, "channel", self) is not None:
            self._consumer.unregisterProducer()
