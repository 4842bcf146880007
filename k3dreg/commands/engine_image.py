"""Look an image up in the engine, for a command."""

from __future__ import annotations

from k3dreg.docker.image import EngineImage
from k3dreg.docker.interfaces import IEngine
from k3dreg.oci.errors import ImageNotInEngine
from k3dreg.oci.reference import Reference
from k3dreg.registry.own_names import OwnNames


async def image_of(engine: IEngine, names: OwnNames, reference: Reference) -> EngineImage:
    """Return the image that the engine has under this name.  Raises `ImageNotInEngine` and `EngineError`."""
    info = await engine.info()
    for name in names.in_engine(reference, info.store):
        try:
            return await engine.inspect(str(name))
        except ImageNotInEngine:
            continue
    raise ImageNotInEngine(f"Docker has no image {reference}", advice=f"docker pull {reference}")
