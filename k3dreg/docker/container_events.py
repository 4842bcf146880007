"""The engine's events about its containers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from k3dreg.docker.events import follow
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.docker.members import texts

# Actions after which a container runs, runs no more, or is gone.  `died` and `remove` are Podman's.
_TOLD = ("start", "die", "died", "destroy", "remove")


async def follow_containers(engine: IEngineRequests, heard: Callable[[Mapping[str, str]], object]) -> None:
    """Call `heard` with the labels of every container that starts, ends or is removed, until the engine ends this.

    `heard` is called without labels at the beginning, as soon as the engine is sure to report later events.

    Raises as `follow` does.
    """

    def hear(event: Mapping[str, object]) -> None:
        actor = event.get("Actor")
        if event.get("Action") in _TOLD and isinstance(actor, dict):
            heard(texts(actor.get("Attributes")))

    await follow(engine, "container", lambda: heard({}), hear)
