"""Labels of k3dreg's containers and images in the engine, and empty images to create containers from."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from twisted.internet.interfaces import IReactorTime

from k3dreg.docker import images
from k3dreg.docker.image import is_helper_image
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.docker.system import when_reachable
from k3dreg.oci.errors import EngineError
from k3dreg.reporting.logger import make_logger

log = make_logger()

# Labels by which k3dreg recognises its containers and images.
ROLE, OWNER = "k3dreg.role", "k3dreg.owner"
# Seconds after which another k3dreg's image, or one without a name, counts as left behind.  A k3dreg needs its image
# for at most a second; the engine's clock may differ from this machine's by minutes.
_IN_USE = 3600.0

# Names of the images that this process needs now, so that `remove_left_behind` keeps them.
_in_use: set[str] = set()


@asynccontextmanager
async def image_of_nothing(engine: IEngineRequests, repository: str, role: str, owner: str) -> AsyncIterator[str]:
    """Import an empty image with labels for `role` and `owner`, and yield its unique name.

    The image is removed at the end of the `async with` block.  Unless the block has failed, `remove_left_behind` is
    called then, too.  Raises `EngineError`.
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
    """Remove empty images that were left in the engine because the engine or a k3dreg was killed.

    `clean_up` removes those without a name, too, for which the engine takes longer.  Raises `EngineError`.
    """
    await _remove(engine, owner, await images.listed(engine, reference="k3dreg-*"))


async def _remove(engine: IEngineRequests, owner: str, found: Iterable[images.ListedImage]) -> None:
    """Remove those of `found` that are k3dreg's and were left behind.

    Images of other k3dregs are removed after an hour, because their k3dreg may never start again, and those without a
    name, too, because this process may be importing one.  An image that a running container uses stays until the next
    call.  Raises `EngineError`.
    """
    oldest = time.time() - _IN_USE
    for image in found:
        is_ours = ROLE in image.labels and all(map(is_helper_image, image.names))
        is_owners = bool(image.names) and image.labels.get(OWNER) == owner
        is_left = is_owners or 0 < image.created < oldest
        if is_ours and is_left and _in_use.isdisjoint(image.names):
            # By ID: removing the name of an image that a container uses would leave an image without a name.
            await images.remove_unless_running(engine, image.id)


async def clean_up(engine: IEngineRequests, owner: str, clock: IReactorTime) -> None:
    """Remove what was left behind as soon as the engine can be reached.  Errors are logged.  Can be cancelled."""

    async def remove() -> None:
        await _remove(engine, owner, await images.listed(engine, label=ROLE))

    try:
        await when_reachable(remove, clock)
    except EngineError as error:
        log.debug("images that an earlier k3dreg left in Docker could not be removed: {error}", error=error)
