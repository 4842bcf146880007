"""A client that pulls manifests and blobs from registries (distribution-spec 1.1, "Pull")."""

from __future__ import annotations

import contextlib
from functools import partial

from attrs import frozen
from twisted.internet.defer import DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IAgent

from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    BlobUnknown,
    DigestMismatch,
    InvalidManifest,
    K3dregError,
    ManifestUnknown,
    StoreError,
    UpstreamFailed,
)
from k3dreg.oci.manifest import LARGEST_MANIFEST, Manifest
from k3dreg.oci.reference import Reference, Repository
from k3dreg.reporting.logger import make_logger
from k3dreg.store.arrivals import Arrival, Arrivals
from k3dreg.store.interfaces import IBlobStore
from k3dreg.streaming.content import IBlob
from k3dreg.upstream.download import Download
from k3dreg.upstream.registry_access import ACCEPT, RegistryAccess
from k3dreg.upstream.registry_requests import Requests

log = make_logger()

# Concurrent downloads.  Docker fetches three layers of an image at once; this allows for two images.
_DOWNLOADS_AT_ONCE = 6


@frozen
class _Access:
    """What a client needs to read a blob, so that it never joins a download that it may not read."""

    repository: Repository
    credentials: Credentials | None


class RegistryClient:
    """A client of registries (`IOrigin`), which keeps what it fetches in `store`, blobs by `arrivals`."""

    def __init__(self, agent: IAgent, store: IBlobStore, arrivals: Arrivals, clock: IReactorTime) -> None:
        """`agent`: see `make_origin_agent`."""
        self._requests = Requests(agent, clock)
        self._registries = RegistryAccess(self._requests, clock)
        self._store = store
        self._arrivals = arrivals
        self._clock = clock
        self._slots = DeferredSemaphore(_DOWNLOADS_AT_ONCE)

    async def manifest(self, reference: Reference, credentials: Credentials | None) -> tuple[Descriptor, bytes]:
        """Return a manifest or index: see `IOrigin`.  Cancelling closes the connection."""
        repository = reference.repository.upstream
        path = f"/v2/{repository.path}/manifests/{reference.target}"
        answer = await self._registries.get(repository, path, {"Accept": ACCEPT}, credentials, ManifestUnknown)
        data = await self._requests.read(answer, LARGEST_MANIFEST)
        digest = Digest.of(data, reference.digest.algorithm if reference.digest else "sha256")
        if reference.digest not in (None, digest):
            raise DigestMismatch(f"{answer.host} sent other content than {reference}")
        said = answer.header("content-type").partition(";")[0].strip()
        try:
            manifest = Manifest.parse(data, said)
        except InvalidManifest as error:
            raise UpstreamFailed(f"{answer.host} sent no manifest for {reference}: {error}") from error
        if digest.algorithm == "sha256":
            with contextlib.suppress(StoreError):  # the pull does not need the cached copy
                await self._store.put(data)
        return Descriptor(manifest.media_type, digest, len(data)), data

    async def blob(
        self, repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None
    ) -> IBlob:
        access = _Access(repository.upstream, credentials)
        return await self._arrivals.open(digest, partial(self._download, access, digest, size), access)

    async def fetch(
        self, repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None
    ) -> IBlob:
        access = _Access(repository.upstream, credentials)
        return await self._arrivals.fetch(digest, partial(self._download, access, digest, size), access)

    async def _download(self, access: _Access, digest: Digest, size: int | None, arrival: Arrival) -> None:
        name = f"{access.repository}@{digest.algorithm}:{digest.short}"
        path = f"/v2/{access.repository.path}/blobs/{digest}"
        download = Download(
            name,
            size,
            lambda headers: self._registries.get(access.repository, path, headers, access.credentials, BlobUnknown),
            self._requests.body,
        )
        async with self._slots:
            started = self._clock.seconds()
            try:
                await download.fill(arrival)
            except K3dregError as error:
                log.warn("{name} was not fetched from its registry: {error}", name=name, error=error)
                raise
        log.info(
            "fetched {name} from its registry: {size:.1f} MB in {seconds:.1f} s",
            name=name,
            size=arrival.written / 1e6,
            seconds=self._clock.seconds() - started,
        )
