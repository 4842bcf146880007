"""Containers that are created and never started, for reading the engine's files through its archive API.

A container of an empty image, with directories of the engine's host bound read-only, is readable by
`GET /containers/{id}/archive` although nothing in it ever runs.  Seen on Docker 20.10, 26.1 and 28.5, both stores.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from k3dreg.interfaces import IEngineRequests
from k3dreg.log import make_logger
from k3dreg.model.engine import EngineInfo
from k3dreg.model.engine_files import engine_directories
from k3dreg.model.errors import EngineError, EngineUnavailable, FilesUnreachable
from k3dreg.streaming.bodies import read_whole

log = make_logger()

# Labels by which the containers and their image are known as ours.
ROLE, OWNER, DIRECTORIES = "k3dreg.role", "k3dreg.owner", "k3dreg.directories"
_IMAGE = "k3dreg-reader"
# An empty tar file is two blocks of zeros.
_EMPTY_TAR = bytes(1024)
_LARGEST_ANSWER = 4 * 1024 * 1024
# States of a container that is being removed, or could not be removed whole (Engine API, "Inspect a container").
_GOING = ("removing", "dead")
# Seconds; each of these takes the engine some ten milliseconds.
_PATIENCE = 20.0


@frozen
class Reader:
    """A container that reads `directories` of the engine's host: it has them as /0, /1 and so on."""

    id: str
    directories: tuple[str, ...]

    def inside(self, path: str) -> str | None:
        """Where a path of the engine's host is in the container; None if it is not."""
        for number, directory in enumerate(self.directories):
            if path == directory or path.startswith(directory + "/"):
                return f"/{number}{path[len(directory) :]}"
        return None


class ReaderContainers:
    """Makes, finds and removes the containers of one k3dreg.  All of it raises `EngineError`."""

    def __init__(self, engine: IEngineRequests, owner: str) -> None:
        """`owner` tells this k3dreg's containers from those of others on the same engine: letters and digits."""
        self._engine = engine
        self._owner = owner

    async def find(self, info: EngineInfo) -> list[Reader]:
        """Those of an earlier run.  Any that read other directories than are wanted now are removed."""
        wanted = {json.dumps(directories) for directories in engine_directories(info)}
        filters = json.dumps({"label": [f"{ROLE}=reader", f"{OWNER}={self._owner}"]})
        readers = []
        for container in await self._ask("GET", "/containers/json", {"all": "1", "filters": filters}) or []:
            label = container["Labels"].get(DIRECTORIES, "")
            if label in wanted and container.get("State") == "created":
                readers.append(Reader(container["Id"], tuple(json.loads(label))))
            else:
                await self.remove(container["Id"])
        return readers

    async def make(self, info: EngineInfo, count: int, made: Callable[[Reader], None]) -> None:
        """`count` new ones; `made` gets each as soon as it is there.

        Their image is gone again when this returns: they do not need it.  Raises `FilesUnreachable` for an engine
        whose images lie where nobody here knows.
        """
        alternatives = engine_directories(info)
        if not alternatives:
            raise FilesUnreachable("the engine keeps its images in a way that is not known here")
        name = f"{_IMAGE}:{self._owner[:8]}-{secrets.token_hex(4)}"
        image = await self._make_image(name)
        try:
            first = await self._make_first(name, alternatives)
            made(first)
            for _ in range(count - 1):
                made(await self._make_one(name, first.directories))
        finally:
            await self._ask("DELETE", f"/images/{image}", {"force": "1"})

    async def remove(self, container: str) -> None:
        """Remove one; it is no error if it is not there, or if somebody else is removing it."""
        try:
            await self._ask("DELETE", f"/containers/{container}", {"force": "1", "v": "1"})
        except EngineError as error:
            if error.status not in (404, 409):
                raise

    async def is_there(self, container: str) -> bool:
        """Whether there is such a container, and nobody has begun to remove it."""
        try:
            found = await self._ask("GET", f"/containers/{container}/json", {})
        except EngineError as error:
            if error.status != 404:
                raise
            return False
        return found.get("State", {}).get("Status") not in _GOING

    async def _make_image(self, name: str) -> str:
        """Import an image of nothing; its ID."""
        repo, _, tag = name.partition(":")
        params = {"fromSrc": "-", "repo": repo, "tag": tag, "changes": f"LABEL {ROLE}=reader {OWNER}={self._owner}"}
        answer = await self._ask("POST", "/images/create", params, _EMPTY_TAR, "application/x-tar")
        if not str(answer.get("status", "")).startswith("sha256:"):  # errors come inside a 200, too
            raise EngineError(f"the engine did not import an empty image: {answer.get('error', '')}"[:200])
        return str(answer["status"])

    async def _make_first(self, image: str, alternatives: tuple[tuple[str, ...], ...]) -> Reader:
        for directories in alternatives[:-1]:
            try:
                return await self._make_one(image, directories)
            except EngineUnavailable:
                raise
            except EngineError as error:
                if error.status != 400:  # 400: a bind of a directory that is not there
                    raise
        return await self._make_one(image, alternatives[-1])

    async def _make_one(self, image: str, directories: tuple[str, ...]) -> Reader:
        mounts = [
            {
                # Mounts, not Binds: a directory that is not there is refused and not made.  Not recursive: what other
                # containers have mounted below is none of our business.
                "Type": "bind",
                "Source": directory,
                "Target": f"/{number}",
                "ReadOnly": True,
                "BindOptions": {"NonRecursive": True},
            }
            for number, directory in enumerate(directories)
        ]
        document = {
            "Image": image,
            "Cmd": ["never-started"],
            "Labels": {ROLE: "reader", OWNER: self._owner, DIRECTORIES: json.dumps(directories)},
            "NetworkDisabled": True,
            "HostConfig": {"NetworkMode": "none", "Mounts": mounts},
        }
        name = f"{_IMAGE}-{self._owner[:8]}-{secrets.token_hex(3)}"
        data = json.dumps(document).encode()
        answer = await self._ask("POST", "/containers/create", {"name": name}, data, "application/json")
        return Reader(str(answer["Id"]), directories)

    async def _ask(
        self, method: str, path: str, params: Mapping[str, str], data: bytes | None = None, kind: str = ""
    ) -> Any:
        headers = {"Content-Type": kind} if kind else {}
        response = await self._engine.request(
            method, path, params=params, headers=headers, data=data, patience=_PATIENCE
        )
        text = await read_whole(self._engine.body(response, "an answer"), _LARGEST_ANSWER)
        try:
            return json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise EngineError("the engine's answer is not JSON") from error
