"""Requests about the engine itself: whether it answers, and its clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from k3dreg.docker.documents import ask
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci.errors import EngineUnavailable
from k3dreg.streaming.response_body import read_whole

T = TypeVar("T")

# Seconds after which a silent engine counts as down.  A healthy one answers a ping within milliseconds.
_MAX_WAIT = 3.0
_LARGEST_PING = 4096
# Seconds between attempts to reach an engine that is down.
_AGAIN = 2.0


async def ping(engine: IEngineRequests) -> None:
    """Raise `EngineError` if the engine does not answer within three seconds."""
    response = await engine.request("GET", "/_ping", versioned=False, max_wait=_MAX_WAIT)
    await read_whole(engine.body(response, "an answer to a ping"), _LARGEST_PING)


async def system_time(engine: IEngineRequests) -> float | None:
    """Return the engine's time in seconds since the epoch; None if it does not tell one.  Raises `EngineError`."""
    info = await ask(engine, "GET", "/info")
    try:
        # RFC 3339 with nanoseconds, which are dropped: a `datetime` holds microseconds.
        text = str(info["SystemTime"])
        head, _, rest = text.partition(".")
        zone = rest.lstrip("0123456789") if rest else ""
        return datetime.fromisoformat(head + zone if rest else text).timestamp()
    except (ValueError, KeyError, TypeError):
        return None


async def when_reachable(ask_engine: Callable[[], Awaitable[T]], clock: IReactorTime) -> T:
    """Return what `ask_engine()` returns, after repeating it while it raises `EngineUnavailable`.

    Raises what else it raises.  Cancelling stops the repetition.
    """
    while True:
        try:
            return await ask_engine()
        except EngineUnavailable:
            await deferLater(clock, _AGAIN)
