"""Requests whose answer is a JSON document."""

from __future__ import annotations

import json
from typing import Any

from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci.errors import EngineError
from k3dreg.streaming.response_body import read_whole

# Headers of a request whose body is a JSON document.
JSON = {"Content-Type": "application/json"}
# Bytes of an answer.  The list of a thousand images has about one MiB.
_LARGEST = 32 * 1024 * 1024


async def ask(engine: IEngineRequests, method: str, path: str, what: str = "an answer", **more: Any) -> Any:
    """Send a request and return the JSON document of its answer, `{}` for an empty answer.

    `more` are arguments of `IEngineRequests.request`, and `what` is that of `IEngineRequests.body`.  Raises
    `EngineError`.
    """
    return parse(await fetch(engine, method, path, what, **more), what)


async def post(engine: IEngineRequests, path: str, document: object, **more: Any) -> Any:
    """Send a JSON document, and return that of the answer, `{}` for an empty answer.

    `more` are arguments of `IEngineRequests.request`.  Raises `EngineError`.
    """
    return await ask(engine, "POST", path, data=json.dumps(document).encode(), headers=JSON, **more)


async def fetch(engine: IEngineRequests, method: str, path: str, what: str, **more: Any) -> bytes:
    """Send a request and return the unparsed answer, for `parse`.  Arguments and errors are those of `ask`."""
    response = await engine.request(method, path, **more)
    return await read_whole(engine.body(response, what), _LARGEST)


def parse(document: bytes, what: str) -> Any:
    """Return the value of a JSON document, `{}` for an empty one.  Raises `EngineError` if it is not JSON."""
    try:
        return json.loads(document) if document.strip() else {}
    except (ValueError, RecursionError) as error:
        raise EngineError(f"the engine's answer is not JSON: {what}") from error
