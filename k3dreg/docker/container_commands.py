"""Run commands in a running container."""

from __future__ import annotations

from attrs import frozen

from k3dreg.docker.documents import JSON, ask, post
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.docker.members import mapping, number, text
from k3dreg.oci.errors import EngineError
from k3dreg.streaming.response_body import read_whole

# Seconds for the whole command.
_MAX_WAIT = 30.0
# Bytes of what a command may print: the list of 300 images in a node has some 200 KB.
_LARGEST = 4 * 1024 * 1024
# Bytes of the header of each frame of the output: a stream's number, three zeros, and the length (Engine API, "Attach
# to a container").
_HEADER = 8


@frozen
class Ended:
    """The exit status of a command, and what it printed to both of its outputs."""

    status: int
    output: str


async def run(engine: IEngineRequests, container: str, *words: str) -> Ended:
    """Run a command as root in a container, and return when it has ended.  Raises `EngineError`."""
    body = {"AttachStdout": True, "AttachStderr": True, "User": "0", "Cmd": list(words)}
    made = mapping(await post(engine, f"/containers/{container}/exec", body, max_wait=_MAX_WAIT))
    identity = text(made.get("Id"))
    if not identity:
        raise EngineError("the engine does not tell the ID of a command")
    response = await engine.request(
        "POST", f"/exec/{identity}/start", data=b'{"Detach":false,"Tty":false}', headers=JSON, max_wait=_MAX_WAIT
    )
    output = _unframed(await read_whole(engine.body(response, "a command's output", silence=_MAX_WAIT), _LARGEST))
    told = mapping(await ask(engine, "GET", f"/exec/{identity}/json", max_wait=_MAX_WAIT))
    return Ended(number(told.get("ExitCode")), output.decode(errors="replace"))


def _unframed(data: bytes) -> bytes:
    parts, at = [], 0
    while at + _HEADER <= len(data):
        end = at + _HEADER + int.from_bytes(data[at + 4 : at + _HEADER], "big")
        parts.append(data[at + _HEADER : end])
        at = end
    return b"".join(parts)
