"""What the engine tells of its images while it runs: `GET /events`.

A hint, and no more: `load` tells no tags and no `tag` event follows, Podman's names are not Docker's, and what happened
while nobody listened is not told at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from k3dreg.docker.connection import Connection
from k3dreg.formats.json_stream import JsonObjects

# Seconds without an event after which the engine is asked anew: a connection over a network may be gone without a word.
QUIET = 600.0
# What gives a name to an image, and tells it.
_NAMING = ("tag", "pull")
# What brings images, under names that are not told.  `loadfromarchive` and `build` are Podman's.
_BRINGING = ("load", "import", "loadfromarchive", "build")


async def follow_events(connection: Connection, heard: Callable[[str], None]) -> None:
    """See `IImageEvents.follow`."""
    params = {"filters": json.dumps({"type": ["image"]})}
    response = await connection.request("GET", "/events", params=params)
    stream = connection.body(response, "the engine's events", silence=QUIET)
    try:
        heard("")
        objects = JsonObjects()
        while data := await stream.read():
            for event in objects.feed(data):
                name = name_in(event)
                if name is not None:
                    heard(name)
    finally:
        stream.close()


def name_in(event: Mapping[str, object]) -> str | None:
    """The name that an image has been given; "" for any; None if the event says nothing of that kind."""
    action, actor = event.get("Action"), event.get("Actor")
    if action in _BRINGING:
        return ""
    if action not in _NAMING or not isinstance(actor, dict):
        return None
    attributes = actor.get("Attributes")
    # A `tag` has the image in its ID and the name beside it; a `pull` has the name in its ID, and beside it a part.
    texts = [attributes.get("name") if isinstance(attributes, dict) else None, actor.get("ID")]
    for text in texts if action == "tag" else reversed(texts):
        if isinstance(text, str) and not text.startswith("sha256:") and ":" in text.rpartition("/")[2]:
            return text
    return ""
