"""Images that the engine holds for another platform than its own, which a node on that engine could not run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cachetools import TTLCache
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.image import EngineImage, EngineInfo, ImageStore
from k3dreg.docker.interfaces import IEngine
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import K3dregError, ManifestUnknown
from k3dreg.oci.platform import Platform
from k3dreg.oci.reference import Reference
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.trace import Trace

log = make_logger()

# Seconds for which a decision is kept.  Asking a registry costs as much as a pull of the manifest, and a node requests
# the same manifest several times.
_DECIDED_FOR = 300.0
_DECISIONS_REMEMBERED = 1000
_ADVICE = "`docker pull --platform {engine}` the image, or name its digest for {held} to run that one"


def differs(image: EngineImage, info: EngineInfo) -> bool:
    """Return whether the engine holds the image for another platform than its own.

    False for a containerd store, which may hold several platforms of an image, and where a platform is not known.
    """
    held, own = image.platform, info.platform
    if info.store is ImageStore.CONTAINERD or held is None or own is None or not held.architecture:
        return False
    return (held.os or own.os, held.architecture) != (own.os, own.architecture)


class OtherPlatforms:
    """Decides whether an image of another platform is served."""

    def __init__(self, engine: IEngine, clock: IReactorTime) -> None:
        self._engine = engine
        # By reference and image: the error for nodes, or None if the image is served.
        self._decided: TTLCache[tuple[Reference, Digest], ManifestUnknown | None] = TTLCache(
            _DECISIONS_REMEMBERED, _DECIDED_FOR, clock.seconds
        )

    async def check(
        self,
        image: EngineImage,
        reference: Reference,
        ask: Callable[[], Awaitable[str]] | None,
        trace: Trace,
    ) -> None:
        """Raise `ManifestUnknown` if the image's registry has the engine's own platform: the node then pulls it there.

        Any other image is served, with a warning in the log: an image that was built here, that exists for that
        platform only, or whose registry cannot be asked.  `ask` raises if the registry may not be asked, and returns
        `X-Registry-Auth`; with None it is not asked.
        """
        info = await self._engine.info()
        if not differs(image, info):
            return
        trace.step(f"{image.platform}")
        key = (reference, image.id)
        try:
            error = self._decided[key]
        except KeyError:
            error = self._decided[key] = await self._decide(image, info, reference, ask)
        if error is not None:
            # An exception that is raised again would collect the traceback of every caller.
            raise error.with_traceback(None)

    async def _decide(
        self, image: EngineImage, info: EngineInfo, reference: Reference, ask: Callable[[], Awaitable[str]] | None
    ) -> ManifestUnknown | None:
        """Return the error for nodes, or None if the image is served."""
        own = str(info.platform)
        if ask is not None and await self._registry_has(info.platform, image, reference, ask):
            error = ManifestUnknown(
                f"Docker holds {reference} for {image.platform} only, and its registry has it for {own}",
                advice=_ADVICE.format(engine=own, held=image.platform),
            )
            log.warn(
                "{error}: k3dreg answers 404, and the node pulls it there. {advice}", error=error, advice=error.advice
            )
            return error
        log.warn(
            "{reference} is served for {held}, while Docker runs on {own}: a node may not be able to run it",
            reference=reference,
            held=str(image.platform),
            own=own,
        )
        return None

    async def _registry_has(
        self,
        own: Platform | None,
        image: EngineImage,
        reference: Reference,
        ask: Callable[[], Awaitable[str]],
    ) -> bool:
        repository = reference.repository.upstream
        # Docker writes Docker Hub's names short.
        short = str(repository).removeprefix("docker.io/").removeprefix("library/")
        if not any(name.partition("@")[0] in (str(repository), short) for name in image.repo_digests):
            return False
        try:
            platforms = await self._engine.platforms(str(reference), await ask())
        except K3dregError as error:
            log.debug("the platforms of {reference} are not known: {error}", reference=reference, error=error)
            return False
        return own is not None and any((p.os, p.architecture) == (own.os, own.architecture) for p in platforms)
