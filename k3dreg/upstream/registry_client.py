"""A client that pulls manifests and blobs from registries (distribution-spec 1.1, "Pull")."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.iweb import IAgent

from k3dreg.formats.basic_auth import Credentials
from k3dreg.formats.challenge import parse_challenges
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    AuthenticationRequired,
    BlobUnknown,
    Denied,
    DigestMismatch,
    InvalidManifest,
    K3dregError,
    ManifestUnknown,
    NotFound,
    RateLimited,
    StoreError,
    UpstreamFailed,
)
from k3dreg.oci.manifest import LARGEST_MANIFEST, Manifest
from k3dreg.oci.reference import Reference, Repository
from k3dreg.reporting.logger import make_logger
from k3dreg.store.interfaces import IBlobStore
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.workers import Workers
from k3dreg.upstream.download import Download
from k3dreg.upstream.registry_requests import RegistryResponse, Requests, base_url
from k3dreg.upstream.tokens import Authorizer

log = make_logger()

_ACCEPT = ", ".join(sorted(media_types.MANIFESTS | media_types.INDEXES))
# Concurrent downloads.  Docker fetches three layers of an image at once; this allows for two images.
_DOWNLOADS_AT_ONCE = 6


@frozen
class _Key:
    """The key of a download.  It contains the credentials, so a client never joins a download that it may not read."""

    repository: Repository
    digest: Digest
    credentials: Credentials | None


class RegistryClient:
    """A client of registries (`IOrigin`), which keeps what it fetches in `store`.

    The owner calls `shutdown` in the end.
    """

    def __init__(self, agent: IAgent, store: IBlobStore, workers: Workers, clock: IReactorTime) -> None:
        """`agent`: see `make_origin_agent`."""
        self._requests = Requests(agent, clock)
        self._authorizer = Authorizer(self._requests, clock)
        self._store = store
        self._workers = workers
        self._clock = clock
        self._slots = DeferredSemaphore(_DOWNLOADS_AT_ONCE)
        self._downloads: dict[_Key, Download] = {}  # the running downloads, for new readers to join
        self._running: set[Deferred[IBlob]] = set()

    async def manifest(self, reference: Reference, credentials: Credentials | None) -> tuple[Descriptor, bytes]:
        """Return a manifest or index: see `IOrigin`.  Cancelling closes the connection."""
        repository = reference.repository.upstream
        path = f"/v2/{repository.path}/manifests/{reference.target}"
        answer = await self._get(repository, path, {"Accept": _ACCEPT}, credentials, ManifestUnknown)
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
        kept = self._store.get(digest)
        if kept is not None:
            return kept
        return await self._join(repository, digest, size, credentials).blob.wait()

    async def fetch(
        self, repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None
    ) -> IBlob:
        kept = self._store.get(digest)
        if kept is not None:
            return kept
        return await self._join(repository, digest, size, credentials).whole.wait()

    def shutdown(self) -> None:
        """Cancel all downloads."""
        for running in list(self._running):
            running.cancel()

    def _join(
        self, repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None
    ) -> Download:
        key = _Key(repository.upstream, digest, credentials)
        if key in self._downloads and self._downloads[key].has_beginning:
            return self._downloads[key]
        path = f"/v2/{key.repository.path}/blobs/{digest}"
        download = Download(
            f"{key.repository}@{digest.algorithm}:{digest.short}",
            digest,
            size,
            lambda headers: self._get(key.repository, path, headers, credentials, BlobUnknown),
            self._requests.body,
            self._store,
            self._workers,
        )
        running = Deferred.fromCoroutine(self._run(download))
        if not running.called:
            self._downloads[key] = download
            self._running.add(running)
        running.addBoth(self._ended, key, download, running)
        return download

    def _ended(self, result: IBlob | Failure, key: _Key, download: Download, running: Deferred[IBlob]) -> None:
        self._running.discard(running)
        if key in self._downloads and self._downloads[key] is download:
            del self._downloads[key]
        if isinstance(result, Failure):
            download.give_up(result.value or CancelledError())
            if download.is_verified:
                log.info("fetched {name} from its registry, without keeping it", name=download.name)
            elif result.check(K3dregError):
                log.warn(
                    "{name} was not fetched from its registry: {error}",
                    name=download.name,
                    error=result.getErrorMessage(),
                )
            elif not result.check(CancelledError):
                log.failure("a download failed with an unexpected error", failure=result)
        else:
            download.succeed(result)

    async def _run(self, download: Download) -> IBlob:
        await self._slots.acquire()
        started = self._clock.seconds()
        try:
            blob = await download.run()
        finally:
            self._slots.release()
        log.info(
            "fetched {name} from its registry: {size:.1f} MB in {seconds:.1f} s",
            name=download.name,
            size=blob.size / 1e6,
            seconds=self._clock.seconds() - started,
        )
        return blob

    async def _get(
        self,
        repository: Repository,
        path: str,
        headers: Mapping[str, str],
        credentials: Credentials | None,
        absent: type[NotFound],
    ) -> RegistryResponse:
        """Return an answer of status 200 or 206, after authentication if the registry requires it.

        Raises `absent` for a 404, and a `Refused` for any other status.
        """
        assert repository.registry is not None
        url = base_url(repository.registry) + path
        shown = await self._authorizer.known(repository, credentials)
        answer = await self._requests.get(url, headers, shown)
        # A host that the registry redirected to is not the registry, so it must not get the registry's credentials.
        if answer.status == 401 and answer.host == urlsplit(url).netloc:
            challenges = parse_challenges(*(answer.headers.getRawHeaders("www-authenticate") or []))
            value = await self._authorizer.answer(challenges, repository, credentials)
            if value and value != shown:
                self._requests.body(answer, "a refusal").close()
                answer = await self._requests.get(url, headers, value)
        if answer.status in (200, 206):
            return answer
        words = await self._requests.complaint(answer)
        match answer.status:
            case 401:
                raise AuthenticationRequired(words, challenge=credentials is None)
            case 403:
                raise Denied(words)
            case 404:
                raise absent(words)
            case 429:
                raise RateLimited(words)
        raise UpstreamFailed(words)
