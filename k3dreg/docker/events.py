"""The engine's events, of one kind of its objects: `GET /events`.

Events while k3dreg is not connected are lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.formats.json_stream import JsonObjects

# Seconds without an event after which k3dreg asks again, because a connection over a network may be lost silently.
QUIET = 600.0


async def follow(
    engine: IEngineRequests, kind: str, begun: Callable[[], object], heard: Callable[[Mapping[str, object]], object]
) -> None:
    """Call `heard` with every event about objects of this kind, such as `image`, until the engine ends this.

    `begun` is called as soon as the engine is sure to report later events.

    Raises `EngineUnavailable` when the connection is lost or silent for long, and `EngineError` when the engine
    refuses.  Cancelling closes the connection.
    """
    params = {"filters": json.dumps({"type": [kind]})}
    response = await engine.request("GET", "/events", params=params)
    stream = engine.body(response, "the engine's events", silence=QUIET)
    try:
        begun()
        objects = JsonObjects()
        while data := await stream.read():
            for event in objects.feed(data):
                heard(event)
    finally:
        stream.close()
