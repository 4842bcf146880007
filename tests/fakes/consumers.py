"""Consumers for tests."""

from __future__ import annotations

from typing import cast

from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from zope.interface import implementer


@implementer(IConsumer)
class Reader:
    """Takes `appetite` bytes, pauses its producer, and goes on when told to `eat`.  None: takes everything."""

    def __init__(self, appetite: int | None = None) -> None:
        self._pieces: list[bytes] = []
        self.producer: IPushProducer | None = None
        self.registered = 0
        self._appetite = appetite

    @property
    def received(self) -> bytes:
        """All bytes so far."""
        return b"".join(self._pieces)

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        assert self.producer is None
        assert streaming
        self.producer = cast(IPushProducer, producer)
        self.registered += 1
        self._pause_if_full()

    def unregisterProducer(self) -> None:
        assert self.producer is not None
        self.producer = None

    def write(self, data: bytes) -> None:
        self._pieces.append(data)
        if self._appetite is not None:
            self._appetite -= len(data)
        self._pause_if_full()

    def eat(self, size: int | None) -> None:
        """Have appetite for `size` more bytes."""
        self._appetite = size
        if self.producer is not None:
            self.producer.resumeProducing()

    def leave(self) -> None:
        """The connection is lost."""
        assert self.producer is not None
        self.producer.stopProducing()

    def _pause_if_full(self) -> None:
        if self._appetite is not None and self._appetite <= 0 and self.producer is not None:
            self.producer.pauseProducing()
