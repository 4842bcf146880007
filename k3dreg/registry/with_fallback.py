"""The use case of a pull with something behind it: what Docker cannot give is asked of the image's own registry."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from k3dreg.formats.basic_auth import BasicAuth, Credentials
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import AuthenticationRequired, ImageIncomplete, K3dregError, NotAnImage, NotFound
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.use_cases import IFallback, IRegistry
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob, ServedManifest

T = TypeVar("T")

log = make_logger()


class WithFallback:
    """Docker's content, and behind it the registries that it comes from (`--origin-fallback`).

    What a tag means is Docker's to say, unless the engine cannot hold what the registry has under it (`NotAnImage`).
    """

    def __init__(self, docker: IRegistry, fallback: IFallback, *, wanted: bool = True) -> None:
        """`wanted` as of `enable`."""
        self._wanted = wanted
        self._docker = docker
        self._fallback = fallback

    def enable(self, wanted: bool) -> None:
        """From the next request on, Docker's content is all there is unless `wanted`."""
        self._wanted = wanted

    async def manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        """See `IRegistry`.  When both say no, it is Docker's no that counts, unless credentials would help."""
        try:
            return await self._docker.manifest(reference, authorization, trace)
        except (NotFound, ImageIncomplete) as error:
            known = reference.digest is not None or isinstance(error, NotAnImage)
            if not known or not self._wanted:
                raise
            shown = None if authorization is None else Credentials.of(authorization)
            return await self._otherwise(self._fallback.manifest(reference, shown, trace), error)

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """See `IRegistry`."""
        try:
            return await self._docker.blob(repository, digest, trace)
        except (NotFound, ImageIncomplete) as error:
            if not self._wanted:
                raise
            return await self._otherwise(self._fallback.blob(repository, digest, trace), error)

    async def _otherwise(self, asked: Awaitable[T], refused: K3dregError) -> T:
        try:
            return await asked
        except AuthenticationRequired:
            raise
        except K3dregError as error:
            log.debug("and k3dreg could not get it from its registry: {error}", error=error)
            raise refused from error
