"""How everything that a daemon opened is closed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from k3dreg.reporting.logger import make_logger

log = make_logger()


class Closing:
    """Closes what was opened, in the reverse of its order.

    What fails is logged and keeps nothing else open.  `AsyncExitStack` alone would raise the last error and drop the
    others.
    """

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    def add(self, close: Callable[[], Awaitable[object] | None]) -> None:
        """Have `close` called, and its result awaited, before what was added earlier is closed."""
        self._stack.push_async_callback(_close, close)

    async def close(self) -> None:
        """Close all that was added."""
        await self._stack.aclose()


async def _close(close: Callable[[], Awaitable[object] | None]) -> None:
    try:
        closed = close()
        if closed is not None:
            await closed
    except Exception:  # noqa: BLE001  (what was opened before it is closed all the same)
        log.failure("{what} failed while k3dreg stopped", what=getattr(close, "__qualname__", repr(close)))
