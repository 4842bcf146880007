"""The engine's events about its images.

They are hints only.  An event of `load` has no tags, and no `tag` event follows it.  Podman spells names otherwise than
Docker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from k3dreg.docker.events import follow
from k3dreg.docker.interfaces import IEngineRequests

# Actions that give an image a name, which is in the event.
_NAMING = ("tag", "pull")
# Actions that bring images, whose names are not in the event.  `loadfromarchive` and `build` are Podman's.
_BRINGING = ("load", "import", "loadfromarchive", "build")


async def follow_events(engine: IEngineRequests, heard: Callable[[str], None]) -> None:
    """Call `heard` with every name that an image is given, as the engine writes it, until the engine ends this.

    `heard` is called with "" when any image may have got a name, which is for an event without a name.  It is called
    with "" at the beginning, too, as soon as the engine is sure to report later events.

    Raises as `follow` does.
    """

    def hear(event: Mapping[str, object]) -> None:
        name = name_in(event)
        if name is not None:
            heard(name)

    await follow(engine, "image", lambda: heard(""), hear)


def name_in(event: Mapping[str, object]) -> str | None:
    """Return the name that an event gives to an image, "" if it may be any name, and None for any other event."""
    action, actor = event.get("Action"), event.get("Actor")
    if action in _BRINGING:
        return ""
    if action not in _NAMING or not isinstance(actor, dict):
        return None
    attributes = actor.get("Attributes")
    # An event of `tag` has the image's ID in `ID` and the whole name in the attribute `name`.  An event of `pull` has
    # the whole name in `ID`, and a part of it in the attribute.
    texts = [attributes.get("name") if isinstance(attributes, dict) else None, actor.get("ID")]
    for text in texts if action == "tag" else reversed(texts):
        if isinstance(text, str) and not text.startswith("sha256:") and ":" in text.rpartition("/")[2]:
            return text
    return ""
