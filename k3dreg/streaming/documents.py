"""JSON documents that an engine answers with."""

from __future__ import annotations

import json
from typing import Any

from k3dreg.interfaces import IEngineRequests
from k3dreg.model.errors import EngineError, EngineUnavailable
from k3dreg.streaming.bodies import read_whole

# Bytes.  The list of a thousand images has about one MiB.
_LARGEST = 32 * 1024 * 1024
# How often a list is asked for that the engine fails to make.
_TRIES = 5


async def ask(engine: IEngineRequests, method: str, path: str, what: str = "an answer", **more: Any) -> Any:
    """The document that is the answer to a request, `{}` for an empty one.

    `more` as of `IEngineRequests.request`, `what` as of `IEngineRequests.body`.  Raises `EngineError`.
    """
    response = await engine.request(method, path, **more)
    text = await read_whole(engine.body(response, what), _LARGEST)
    try:
        return json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise EngineError(f"the engine's answer is not JSON: {what}") from error


async def ask_images(engine: IEngineRequests, **more: Any) -> list[Any]:
    """The list of images; `more` as of `ask`.  Raises `EngineError`.

    An engine with the containerd store reads the names first and then what they mean, and fails when an image has been
    removed between (seen in 28.5: 404, `content digest sha256:…: not found`).  So it is asked again, at once: the name
    is gone by then.
    """
    tries = _TRIES
    while True:
        tries -= 1
        try:
            images = await ask(engine, "GET", "/images/json", "the list of images", **more)
        except EngineUnavailable:
            raise
        except EngineError as error:
            if not tries or "not found" not in str(error).lower():
                raise
        else:
            return images if isinstance(images, list) else []
