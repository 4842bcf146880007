"""The engine's events about its images and its containers: `GET /events`.

They are hints only: events while k3dreg is not connected are lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.docker.members import text, texts
from k3dreg.formats.json_stream import JsonObjects

# Seconds without an event after which k3dreg asks again, because a connection over a network may be lost silently.
QUIET = 600.0
# Actions that give an image a name, which is in the event.
_NAMING = ("tag", "pull")
# Actions that bring images, whose names are not in the event.  `loadfromarchive` and `build` are Podman's.
_BRINGING = ("load", "import", "loadfromarchive", "build")
# Actions after which a container runs, runs no more, or is gone.  `died` and `remove` are Podman's.
_RUNNING = ("start", "die", "died", "destroy", "remove")


async def follow_images(engine: IEngineRequests, heard: Callable[[str], None]) -> None:
    """Call `heard` with every name that an image is given, as the engine writes it, until the engine ends this.

    `heard` is called with "" when any image may have got a name, which is for an event without a name.  It is called
    with "" at the beginning, too, as soon as the engine is sure to report later events.

    Raises `EngineUnavailable` when the connection is lost or silent for long, and `EngineError` when the engine
    refuses.  Cancelling closes the connection.
    """

    def hear(event: Mapping[str, object]) -> None:
        name = name_in(event)
        if name is not None:
            heard(name)

    await _follow(engine, "image", lambda: heard(""), hear)


async def follow_containers(engine: IEngineRequests, heard: Callable[[Mapping[str, str]], object]) -> None:
    """Call `heard` with the labels of every container that starts, ends or is removed, until the engine ends this.

    `heard` is called without labels at the beginning, as soon as the engine is sure to report later events.

    Raises as `follow_images` does.
    """

    def hear(event: Mapping[str, object]) -> None:
        actor = event.get("Actor")
        if event.get("Action") in _RUNNING and isinstance(actor, dict):
            heard(texts(actor.get("Attributes")))

    await _follow(engine, "container", lambda: heard({}), hear)


def name_in(event: Mapping[str, object]) -> str | None:
    """Return the name that an event gives to an image, "" if it may be any name, and None for any other event.

    Podman spells names otherwise than Docker.
    """
    action, actor = event.get("Action"), event.get("Actor")
    if action in _BRINGING:  # no event of `tag` follows one of `load`
        return ""
    if action not in _NAMING or not isinstance(actor, dict):
        return None
    # An event of `tag` has the image's ID in `ID` and the whole name in the attribute `name`.  An event of `pull` has
    # the whole name in `ID`, and a part of it in the attribute.
    names = [texts(actor.get("Attributes")).get("name", ""), text(actor.get("ID"))]
    for name in names if action == "tag" else reversed(names):
        if not name.startswith("sha256:") and ":" in name.rpartition("/")[2]:
            return name
    return ""


async def _follow(
    engine: IEngineRequests, kind: str, begun: Callable[[], object], heard: Callable[[Mapping[str, object]], object]
) -> None:
    """Call `heard` with every event about objects of this kind, such as `image`, until the engine ends this.

    `begun` is called as soon as the engine is sure to report later events.

    Raises as `follow_images` does.
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
