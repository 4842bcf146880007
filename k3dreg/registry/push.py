"""The use case of pushing (bytes -> blob -> manifest -> tag) and of deleting what was pushed.

This module uses the stores by their interfaces only.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from k3dreg.formats.upload_session import ContentRange
from k3dreg.oci.digest import DEFAULT_ALGORITHM, Digest
from k3dreg.oci.errors import BlobUnknown, DigestNotMatched, InvalidManifest, ManifestUnknown, UnsupportedOperation
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.reference import Repository, Tag
from k3dreg.registry.adoption import Adopter, check_bounds, pushed_manifest
from k3dreg.registry.own_names import OwnNames
from k3dreg.registry.upload_sessions import MOST_SESSIONS, UploadSessions
from k3dreg.registry.use_cases import IRegistry, Pushed, UploadStatus
from k3dreg.reporting.trace import Trace
from k3dreg.store.interfaces import IBlobStore, IPushed, IStaging
from k3dreg.streaming.content import IByteStream
from k3dreg.streaming.workers import Workers

# Manifests that are parsed at a time.  A real one takes a millisecond, but 4 MiB of brackets become 100 MiB of lists.
_PARSED_AT_ONCE = 1


class Uploads:
    """Stores what clients push, and deletes it.  Implements `IUploads`.  Call `shutdown` at the end."""

    def __init__(
        self,
        store: IBlobStore,
        staging: IStaging,
        pushed: IPushed,
        registry: IRegistry,
        names: OwnNames,
        workers: Workers,
        clock: IReactorTime,
        *,
        most_sessions: int = MOST_SESSIONS,
    ) -> None:
        """`registry` is asked for content that a pushed manifest refers to and that was not pushed.

        `most_sessions` is the number of upload sessions that may exist at a time.
        """
        self._deleting = True
        self._store = store
        self._pushed = pushed
        self._names = names
        self._workers = workers
        self._adopter = Adopter(store, pushed, registry, workers)
        self._parsing = DeferredSemaphore(_PARSED_AT_ONCE)
        self._sessions = UploadSessions(staging, names, workers, clock, most_sessions)

    @property
    def deleting(self) -> bool:
        """Whether clients may delete manifests, tags and blobs."""
        return self._deleting

    def allow_deleting(self, allowed: bool) -> None:
        """Allow or refuse deleting from the next request on.  It is allowed at first."""
        self._deleting = allowed

    def allow_sparse(self, *, manifests: bool, indexes: bool) -> None:
        """Accept or refuse manifests, and indexes, of which parts are missing.  They are refused at first."""
        self._adopter.allow_sparse(manifests=manifests, indexes=indexes)

    # -- blobs ----------------------------------------------------------------------------------

    def open(self, repository: Repository, algorithm: str = DEFAULT_ALGORITHM) -> UploadStatus:
        return self._sessions.open(repository, algorithm)

    def status(self, repository: Repository, session: str) -> UploadStatus:
        return self._sessions.status(repository, session)

    def cancel(self, repository: Repository, session: str) -> None:
        self._sessions.cancel(repository, session)

    async def append(
        self,
        repository: Repository,
        session: str,
        body: IByteStream,
        content_range: ContentRange | None,
        length: int | None,
    ) -> UploadStatus:
        return await self._sessions.append(repository, session, body, content_range, length)

    async def commit(
        self,
        repository: Repository,
        session: str,
        digest: Digest,
        body: IByteStream,
        content_range: ContentRange | None,
        length: int | None,
    ) -> None:
        # Between `finish` and `add_blob` no repository has the blob, so it could be evicted or collected as garbage.
        release = self._store.hold([digest])
        try:
            own = await self._sessions.finish(repository, session, digest, body, content_range, length)
            await self._pushed.add_blob(own, digest, self._store.size_of(digest))
        finally:
            release()

    def shutdown(self) -> None:
        """End all upload sessions and delete their bytes."""
        self._sessions.shutdown()

    async def mount(self, repository: Repository, digest: Digest, trace: Trace) -> bool:
        return await self._adopter.adopt_here(self._names.ours(repository), digest)

    async def push_manifest(
        self,
        repository: Repository,
        data: bytes,
        media_type: str,
        digest: Digest | None,
        tags: Sequence[Tag],
        trace: Trace,
    ) -> Pushed:
        repository = self._names.ours(repository)
        await self._parsing.acquire()
        try:
            manifest, actual = await self._workers.run(_parse, data, media_type, digest)
        finally:
            self._parsing.release()
        await self._adopter.adopt_parts(repository, manifest, trace)
        release = self._store.hold([actual])
        try:
            await self._workers.run(self._keep, actual, data)
            await self._pushed.add_manifest(repository, pushed_manifest(manifest, actual, len(data)), tags)
        finally:
            release()
        subject = None if manifest.subject is None else manifest.subject.digest
        return Pushed(actual, subject, tuple(tags))

    def _keep(self, digest: Digest, data: bytes) -> None:
        writer = self._store.writer(digest.algorithm, durable=True)
        try:
            writer.write(data)
            writer.commit(digest, len(data))
        finally:
            writer.abort()

    # -- deleting -------------------------------------------------------------------------------

    async def delete_tag(self, repository: Repository, tag: Tag, *, with_manifests: bool = False) -> None:
        self._check_deleting()
        remove = self._pushed.remove_tag_and_manifests if with_manifests else self._pushed.remove_tag
        if not await remove(self._names.own(repository), tag):
            raise ManifestUnknown(f"no tag {tag} was pushed to {repository}")

    async def delete_manifest(self, repository: Repository, digest: Digest) -> None:
        self._check_deleting()
        if not await self._pushed.remove_manifest(self._names.own(repository), digest):
            raise ManifestUnknown(f"{digest} was not pushed to {repository}")
        await self._clear_away(digest)

    async def delete_blob(self, repository: Repository, digest: Digest) -> None:
        self._check_deleting()
        if not await self._pushed.remove_blob(self._names.own(repository), digest):
            raise BlobUnknown(f"{digest} was not pushed to {repository}")
        await self._clear_away(digest)

    async def _clear_away(self, digest: Digest) -> None:
        """Remove the file if no repository has it now.  The store removes a file that is being read afterwards."""
        if not self._pushed.keeps(digest) and await self._store.drop(digest):
            self._pushed.forget(digest)

    def _check_deleting(self) -> None:
        if not self._deleting:
            raise UnsupportedOperation("deleting is turned off in this registry")


def _parse(data: bytes, media_type: str, digest: Digest | None) -> tuple[Manifest, Digest]:
    """Verify and parse a manifest, and return it with its digest.  Runs in a worker thread: 4 MiB of JSON are slow."""
    actual = Digest.of(data, "sha256" if digest is None else digest.algorithm)
    if digest is not None and actual != digest:
        raise DigestNotMatched(f"the manifest hashes to {actual}, not to {digest}")
    manifest = Manifest.parse(data, media_type)
    if media_type not in ("", manifest.media_type):
        raise InvalidManifest(f"a manifest is {manifest.media_type!r} and was pushed as {media_type[:150]!r}")
    check_bounds(manifest)
    return manifest, actual
