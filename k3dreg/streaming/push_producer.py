"""The base class of producers: waiting, interrupting and unregistering, in one place."""

from __future__ import annotations

from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer, IReactorTime
from zope.interface import implementer

T = TypeVar("T")

# Seconds within which a consumer must take a chunk.  After five minutes without a byte containerd cancels a pull
# (`image_pull_progress_timeout`), so the client no longer waits.
STALL = 300.0


class ConsumerGone(Exception):
    """The connection of the consumer is lost.  This is no failure of k3dreg, and there is no client to answer."""


class ConsumerStalled(ConsumerGone):
    """The consumer took no bytes within the time limit.  The caller must abort its connection."""


class _Raised(Exception):
    """Replaces the error that ended the sending, after it was raised."""


@implementer(IPushProducer)
class PushProducer:
    """A producer for one consumer whose waits all end at once on `interrupt`."""

    def __init__(self, consumer: IConsumer, clock: IReactorTime, stall: float) -> None:
        """`stall`: seconds within which the consumer must take a piece."""
        self._consumer = consumer
        self._clock = clock
        self._stall = stall
        self.position = 0  # offset of the first byte that was not written to the consumer
        self._error: Exception | None = None
        self._interruptible: Deferred[object] | None = None

    def interrupt(self, error: Exception) -> None:
        """End the sending with `error`, at once if it is waiting.  Later calls are ignored."""
        if self._error is None:
            self._error = error
            if self._interruptible is not None:
                self._interruptible.cancel()

    # -- what the consumer calls ----------------------------------------------------------------

    def pauseProducing(self) -> None:
        """Do nothing; a subclass that has to stop writing overrides it."""

    def resumeProducing(self) -> None:
        """Do nothing; a subclass that has to stop writing overrides it."""

    def stopProducing(self) -> None:
        """End the sending with `ConsumerGone`."""
        self.interrupt(ConsumerGone("the connection was lost"))

    # -- waiting --------------------------------------------------------------------------------

    async def _wait(self, deferred: Deferred[T]) -> T:
        """Wait for `deferred`, or until `interrupt` is called."""
        self._interruptible = deferred  # type: ignore[assignment]  # only ever cancelled
        try:
            return await deferred
        except CancelledError:
            self._raise_if_interrupted()
            raise
        finally:
            self._interruptible = None

    async def _wait_for_consumer(self, ready: Deferred[None]) -> None:
        """Wait for `ready`; interrupt the sending with `ConsumerStalled` after `stall` seconds."""
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
            # A raised error refers to its frames, and those refer to the producer.  If the producer kept a reference
            # to the error, only the cyclic garbage collector could free the buffers in those frames.
            error, self._error = self._error, _Raised()
            try:
                raise error from None
            finally:
                del error

    # The `channel` of a twisted.web Request is None once its connection is lost; its methods raise errors then.

    def _register(self) -> None:
        if getattr(self._consumer, "channel", self) is None:
            raise ConsumerGone("the connection was lost")
        self._consumer.registerProducer(self, True)

    def _unregister(self) -> None:
        if getattr(self._consumer, "channel", self) is not None:
            self._consumer.unregisterProducer()
