"""Requests about the engine itself: whether it answers, and its clock."""

from __future__ import annotations

from datetime import datetime

from k3dreg.docker.documents import ask
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.streaming.response_body import read_whole

# Seconds after which a silent engine counts as down.  A healthy one answers a ping within milliseconds.
_MAX_WAIT = 3.0
_LARGEST_PING = 4096


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
