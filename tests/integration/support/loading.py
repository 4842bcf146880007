"""`docker load`, through k3dreg's own client of the engine."""

from __future__ import annotations

import re

from k3dreg.docker.client import EngineClient
from k3dreg.streaming.response_body import read_whole

_LIMIT = 1024 * 1024
_TRIES = 5
# An engine with the containerd store may collect what it was rid of a moment ago, the layers of an image that a test
# before this one removed, while it unpacks the same layers; it says so, and has them when it is asked again.
_COLLECTED = re.compile(r"parent snapshot \S+ does not exist")


async def load(engine: EngineClient, archive: bytes) -> None:
    """Asserts that the engine takes it."""
    headers = {"Content-Type": "application/x-tar"}
    for left in reversed(range(_TRIES)):
        response = await engine.request("POST", "/images/load", params={"quiet": "1"}, headers=headers, data=archive)
        said = (await read_whole(engine.body(response, "a load"), _LIMIT)).decode()
        if "error" not in said:
            return
        assert left and _COLLECTED.search(said), said
