"""The labels of what k3dreg has in the engine, and the empty images that it has there for a while."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from k3dreg.docker import images
from k3dreg.docker.image import is_helper_image
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.oci.errors import EngineError, EngineUnavailable
from k3dreg.reporting.logger import make_logger

log = make_logger()

# Labels by which containers and images are known as ours.
ROLE, OWNER = "k3dreg.role", "k3dreg.owner"
# Seconds after which an image of another k3dreg's cannot be in use: it is removed again after at most one.  The
# engine's clock may differ by minutes.
_IN_USE = 3600.0
# Seconds until an engine that could not be asked at the start is asked again.
_ENGINE_AGAIN = 2.0

# Names of the images that this process has in the engine.
_in_use: set[str] = set()


@asynccontextmanager
async def image_of_nothing(engine: IEngineRequests, repository: str, role: str, owner: str) -> AsyncIterator[str]:
    """Import an empty image with these labels, for as long as the `async with` lasts, and yield its unique name.

    In the end `remove_left_behind` is called, too.  Raises `EngineError`.
    """
    name = f"{repository}:{owner[:8]}-{secrets.token_hex(16)}"
    _in_use.add(name)
    try:
        image = await images.import_empty(engine, name, {ROLE: role, OWNER: owner})
        try:
            yield name
        finally:
            await images.remove(engine, image, force=True)
    finally:
        _in_use.discard(name)
    await remove_left_behind(engine, owner)


async def remove_left_behind(engine: IEngineRequests, owner: str) -> None:
    """Remove the empty images that were left in the engine when it, or a k3dreg, was killed.  Raises `EngineError`.

    An image of another k3dreg may be in use, for some seconds; after that time its k3dreg was killed, and its state
    directory may be gone.  An image of which a container runs stays until the next call.
    """
    oldest = time.time() - _IN_USE
    for image in await images.listed(engine, reference="k3dreg-*"):
        is_ours = ROLE in image.labels and all(map(is_helper_image, image.names))
        is_left = image.labels.get(OWNER) == owner or 0 < image.created < oldest
        if is_ours and is_left and _in_use.isdisjoint(image.names):
            # By its ID: an image that a container has, and that loses its name alone, is kept without one.
            await images.remove_unless_running(engine, image.id)


async def clean_up(engine: IEngineRequests, owner: str, clock: IReactorTime) -> None:
    """Call `remove_left_behind` as soon as the engine is there.  Cancelling ends the waiting."""
    while True:
        try:
            return await remove_left_behind(engine, owner)
        except EngineUnavailable:
            await deferLater(clock, _ENGINE_AGAIN)
        except EngineError as error:
            log.debug("images that an earlier k3dreg left in Docker could not be removed: {error}", error=error)
            return None
