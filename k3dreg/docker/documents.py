"""JSON documents that an engine answers with."""

from __future__ import annotations

import json
from typing import Any

from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci.errors import EngineError
from k3dreg.streaming.response_body import read_whole

# Bytes.  The list of a thousand images has about one MiB.
_LARGEST = 32 * 1024 * 1024


async def ask(engine: IEngineRequests, method: str, path: str, what: str = "an answer", **more: Any) -> Any:
    """Return the document that is the answer to a request, `{}` for an empty one.

    `more` as of `IEngineRequests.request`, `what` as of `IEngineRequests.body`.  Raises `EngineError`.
    """
    return parse(await fetch(engine, method, path, what, **more), what)


async def fetch(engine: IEngineRequests, method: str, path: str, what: str, **more: Any) -> bytes:
    """Return the document as the engine sent it, for `parse`.  Arguments and errors as of `ask`."""
    response = await engine.request(method, path, **more)
    return await read_whole(engine.body(response, what), _LARGEST)


def parse(document: bytes, what: str) -> Any:
    """Return the value of a document, `{}` of an empty one.  Raises `EngineError`."""
    try:
        return json.loads(document) if document.strip() else {}
    except (ValueError, RecursionError) as error:
        raise EngineError(f"the engine's answer is not JSON: {what}") from error
