"""The interface by which the pages about the daemon get what they show."""

from __future__ import annotations

from typing import Protocol

from k3dreg.status.overview import Live, Overview


class IMonitoring(Protocol):
    """The state of the daemon, for users and programs that monitor it."""

    async def engine_trouble(self) -> str:
        """Return why the engine cannot be used, in a sentence; "" if it answers.  Takes a few seconds at most."""

    async def metrics(self) -> tuple[str, bytes]:
        """Return the media type and the text of all metrics."""

    def live(self) -> Live:
        """Return the work under way, and the pulls and requests that have ended last.  No I/O."""

    async def overview(self) -> Overview:
        """Return the state of engine and store.

        If the engine does not answer, `Overview.trouble` says why, and nothing is raised.
        """
