"""Closes everything that a daemon has opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from k3dreg.reporting.logger import make_logger

log = make_logger()


class Closing:
    """Calls the functions that were added, the last first.

    A function that fails is logged, and the others are called all the same.  `AsyncExitStack` alone would raise the
    last error and drop the others.
    """

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    def add(self, close: Callable[[], Awaitable[object] | None]) -> None:
        """Let `close()` call the function, and await its result, before the functions that were added earlier."""
        self._stack.push_async_callback(_close, close)

    async def close(self) -> None:
        """Call all functions that were added."""
        await self._stack.aclose()


async def _close(close: Callable[[], Awaitable[object] | None]) -> None:
    try:
        closed = close()
        if closed is not None:
            await closed
    except Exception:  # noqa: BLE001  (the functions that were added earlier must still be called)
        log.failure("{what} failed while k3dreg stopped", what=getattr(close, "__qualname__", repr(close)))
