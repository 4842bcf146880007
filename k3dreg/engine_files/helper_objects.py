"""Small questions to the engine, and the containers and images that k3dreg has there for a while."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from k3dreg.docker import documents
from k3dreg.docker.engine import IEngineRequests
from k3dreg.docker.image import is_helper_image
from k3dreg.oci.errors import EngineError, EngineUnavailable

# Labels by which containers and images are known as ours.
ROLE, OWNER = "k3dreg.role", "k3dreg.owner"
# An empty tar file is two blocks of zeros.
_EMPTY_TAR = bytes(1024)
# Seconds; each of these takes the engine some ten milliseconds, to start a container some hundred.
_PATIENCE = 20.0
# Seconds after which an image of another k3dreg's cannot be in use: it is removed again after at most one.
_IN_USE = 600.0


async def ask(engine: IEngineRequests, method: str, path: str, **more: Any) -> Any:
    """As `documents.ask`, but for something that takes the engine no time.  Raises `EngineError`."""
    return await documents.ask(engine, method, path, patience=_PATIENCE, **more)


async def create(
    engine: IEngineRequests,
    name: str,
    alternatives: Sequence[tuple[str, ...]],
    describe: Callable[[tuple[str, ...]], Mapping[str, Any]],
) -> tuple[str, tuple[str, ...]]:
    """A container for the first of the `alternatives` that this engine's host has; its ID, and those directories.

    `describe` makes its description.  Raises `EngineError`.
    """
    for directories in alternatives[:-1]:
        try:
            return await _create(engine, name, describe(directories)), directories
        except EngineUnavailable:
            raise
        except EngineError as error:
            if error.status != 400:  # 400: a mount of a directory that is not there
                raise
    return await _create(engine, name, describe(alternatives[-1])), alternatives[-1]


async def _create(engine: IEngineRequests, name: str, document: Mapping[str, Any]) -> str:
    data, headers = json.dumps(document).encode(), {"Content-Type": "application/json"}
    answer = await ask(engine, "POST", "/containers/create", params={"name": name}, data=data, headers=headers)
    return str(answer["Id"])


async def remove(engine: IEngineRequests, container: str) -> None:
    """Remove one; it is no error if it is not there, or if somebody else is removing it.  Raises `EngineError`."""
    try:
        await ask(engine, "DELETE", f"/containers/{container}", params={"force": "1", "v": "1"})
    except EngineError as error:
        if error.status not in (404, 409):
            raise


async def containers_of(engine: IEngineRequests, role: str, owner: str) -> list[dict[str, Any]]:
    """What `GET /containers/json` tells of those with these labels, running or not.  Raises `EngineError`."""
    filters = json.dumps({"label": [f"{ROLE}={role}", f"{OWNER}={owner}"]})
    return await ask(engine, "GET", "/containers/json", params={"all": "1", "filters": filters}) or []


@asynccontextmanager
async def image_of_nothing(engine: IEngineRequests, repository: str, role: str, owner: str) -> AsyncIterator[str]:
    """An empty image with these labels, for as long as the `async with` lasts; its name, which nobody else has.

    In the end those are removed, too, that were left when the engine, or a k3dreg, was killed.  Raises `EngineError`.
    """
    prefix = f"{repository}:{owner[:8]}-"
    name = f"{prefix}{secrets.token_hex(16)}"
    image = await _import_nothing(engine, name, f"{ROLE}={role} {OWNER}={owner}")
    try:
        yield name
        filters = {"filters": json.dumps({"reference": [repository]})}
        found = await documents.ask_images(engine, params=filters, patience=_PATIENCE)
    finally:
        await _remove_image(engine, image)
    for left in _left_behind(found, name, prefix):
        await _remove_image(engine, left)


def _left_behind(images: Iterable[Mapping[str, Any]], name: str, prefix: str) -> Iterator[str]:
    """The names of images like `name`, with that prefix, that no k3dreg uses any more.

    One of another k3dreg's on the same engine may be in use, for some seconds.  One that is minutes older than `name`
    is not: its k3dreg was killed, and its state directory may be gone.  Both ages are by the engine's clock.
    """
    made = {tag: image for image in images for tag in image.get("RepoTags") or ()}
    now = _created(made.get(name, {}))
    for tag, image in made.items():
        is_old = ROLE in (image.get("Labels") or {}) and 0 < _created(image) < now - _IN_USE
        is_old = is_old and is_helper_image(tag)
        if tag != name and (tag.startswith(prefix) or is_old):
            yield tag


def _created(image: Mapping[str, Any]) -> float:
    """Seconds since the epoch; 0 where the engine does not tell."""
    created = image.get("Created")
    return created if isinstance(created, int | float) else 0


async def _import_nothing(engine: IEngineRequests, name: str, labels: str) -> str:
    """Its ID."""
    repository, _, tag = name.partition(":")
    params = {"fromSrc": "-", "repo": repository, "tag": tag, "changes": f"LABEL {labels}"}
    headers = {"Content-Type": "application/x-tar"}
    answer = await ask(engine, "POST", "/images/create", params=params, data=_EMPTY_TAR, headers=headers)
    if not str(answer.get("status", "")).startswith("sha256:"):  # errors come inside a 200, too
        raise EngineError(f"the engine did not import an empty image: {answer.get('error', '')}"[:200])
    return str(answer["status"])


async def _remove_image(engine: IEngineRequests, image: str) -> None:
    """Remove the image; one that is gone is no error: Docker 26 lists an image for a moment after its removal."""
    try:
        await ask(engine, "DELETE", f"/images/{image}", params={"force": "1"})
    except EngineError as error:
        if error.status != 404:
            raise


def mounts(directories: tuple[str, ...]) -> list[dict[str, Any]]:
    """Directories of the engine's host for a container, which has them as /0, /1 and so on; to be read only.

    Mounts, not Binds: a directory that is not there is refused and not made.  Not recursive: what other containers have
    mounted below is none of our business.
    """
    return [
        {
            "Type": "bind",
            "Source": directory,
            "Target": f"/{number}",
            "ReadOnly": True,
            "BindOptions": {"NonRecursive": True},
        }
        for number, directory in enumerate(directories)
    ]
