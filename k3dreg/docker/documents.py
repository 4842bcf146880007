"""JSON documents that an engine answers with."""

from __future__ import annotations

import json
from typing import Any

from k3dreg.docker.engine import IEngineRequests
from k3dreg.oci.errors import EngineError, EngineUnavailable
from k3dreg.streaming.response_body import read_whole

# Bytes.  The list of a thousand images has about one MiB.
_LARGEST = 32 * 1024 * 1024
# How often a list is asked for that the engine fails to make.
_TRIES = 5
_IMAGES = "the list of images"


async def ask(engine: IEngineRequests, method: str, path: str, what: str = "an answer", **more: Any) -> Any:
    """The document that is the answer to a request, `{}` for an empty one.

    `more` as of `IEngineRequests.request`, `what` as of `IEngineRequests.body`.  Raises `EngineError`.
    """
    return _parsed(await _fetch(engine, method, path, what, **more), what)


async def _fetch(engine: IEngineRequests, method: str, path: str, what: str, **more: Any) -> bytes:
    response = await engine.request(method, path, **more)
    return await read_whole(engine.body(response, what), _LARGEST)


def _parsed(text: bytes, what: str) -> Any:
    try:
        return json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise EngineError(f"the engine's answer is not JSON: {what}") from error


async def ask_images(engine: IEngineRequests, **more: Any) -> list[Any]:
    """Return the list of images; `more` as of `ask`.  Raises `EngineError`.  For lists that are short."""
    return images_in(await fetch_images(engine, **more))


def images_in(text: bytes) -> list[Any]:
    """Return the images in an answer of `fetch_images`.  Raises `EngineError`.  A long list takes a while."""
    images = _parsed(text, _IMAGES)
    return images if isinstance(images, list) else []


async def fetch_images(engine: IEngineRequests, **more: Any) -> bytes:
    """Return the list of images as the engine sent it; `more` as of `ask`.  Raises `EngineError`.

    An engine with the containerd store reads the names first and then what they mean, and fails when an image has been
    removed between (seen in 28.5: 404, `content digest sha256:…: not found`).  So it is asked again, at once: the name
    is gone by then.
    """
    tries = _TRIES
    while True:
        tries -= 1
        try:
            return await _fetch(engine, "GET", "/images/json", _IMAGES, **more)
        except EngineUnavailable:
            raise
        except EngineError as error:
            if not tries or "not found" not in str(error).lower():
                raise
