"""The interface of what the status pages show."""

from __future__ import annotations

from typing import Protocol

from k3dreg.status.overview import Live, Overview


class IMonitoring(Protocol):
    """What the web package shows of the daemon itself, to people and programs that look after it."""

    async def engine_trouble(self) -> str:
        """Why the engine cannot be used, in a sentence; "" when it answers.  Takes a few seconds at most."""

    async def metrics(self) -> tuple[str, bytes]:
        """The media type and the text of all metrics."""

    def live(self) -> Live:
        """What is under way and what has ended lately.  No I/O."""

    async def overview(self) -> Overview:
        """What is here.  An engine that does not answer is told of in it, not raised."""
