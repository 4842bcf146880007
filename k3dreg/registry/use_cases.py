"""Interfaces of the use cases, as the web package calls them, and the values that they return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen

from k3dreg.formats.basic_auth import BasicAuth, Credentials
from k3dreg.formats.upload_session import ContentRange
from k3dreg.oci.digest import Digest
from k3dreg.oci.reference import Reference, Repository, Tag
from k3dreg.reporting.trace import Trace
from k3dreg.store.interfaces import ReferrersPage
from k3dreg.streaming.content import IBlob, IByteStream, ServedManifest


class IFallback(Protocol):
    """Fetches content that no source gives from the image's own registry."""

    async def manifest(self, reference: Reference, shown: Credentials | None, trace: Trace) -> ServedManifest:
        """Return a manifest as its registry has it now.  `shown` is the credentials that the client sent.

        Raises `NotFound`, or a `Refused` whose class tells whether credentials would help.
        """

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """Return a blob of a repository, whose bytes may still be arriving.

        Raises `NotFound`, `Refused` or `StoreError`.
        """


class IRegistry(Protocol):
    """The use case of a pull, as the web package calls it."""

    async def manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        """Return the manifest that `reference` names now.  `authorization` is the credentials that the client sent.

        Raises `NotFound`, `Refused`, `EngineError`, `ContentError` or `StoreError`.  Cancelling leaves a pull, an
        export and a repair running for the next request.
        """

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """Return a blob, whose bytes may still be arriving.  Raises as `manifest` does."""


class IDiscovery(Protocol):
    """The use case of listing tags, repositories and referrers, as the web package calls it."""

    async def tags(self, repository: Repository, last: str | None, limit: int) -> Sequence[str]:
        """Return the tags of a repository in lexical order: at most `limit` after `last`.  Raises `NameUnknown`.

        With a `last`, the client has received a page before this one, so a list that the engine gave some seconds ago
        serves as well.
        """

    async def repositories(self, last: str | None, limit: int) -> Sequence[str]:
        """Return the paths of this registry's own repositories, as `tags` returns tags."""

    async def referrers(
        self, repository: Repository, subject: Digest, artifact_type: str | None, last: str | None, room: int
    ) -> ReferrersPage:
        """Return manifests that refer to `subject`, in the order of their digests, after the digest `last`.

        The subject itself need not be in the repository.  `artifact_type`, unless None, leaves out others.  The page
        ends before the descriptor that would exceed `room` bytes in total, but has at least one.  Raises `StoreError`.
        """


@frozen
class UploadStatus:
    """An upload session: its repository, its ID, and the number of bytes received."""

    repository: Repository
    session: str
    received: int


@frozen
class Pushed:
    """A manifest that was pushed: its digest, its subject, and the tags that name it since this push."""

    digest: Digest
    subject: Digest | None = None
    tags: tuple[Tag, ...] = ()


class IUploads(Protocol):
    """The use case of pushing and deleting, as the web package calls it.

    Sizes are in bytes.  When a coroutine returns, its change survives a power failure, except the bytes of an open
    session.  All methods may raise `StoreFull` and `StoreError`.  Methods that would add to a repository of another
    registry raise `NotOurs`.
    """

    @property
    def deleting(self) -> bool:
        """Whether clients may delete manifests, tags and blobs."""

    def open(self, repository: Repository, algorithm: str = "sha256") -> UploadStatus:
        """Open an upload session.  Raises `TooManyUploads`.

        `algorithm` is the likely one of the blob's digest; a commit with another is slower.
        """

    def status(self, repository: Repository, session: str) -> UploadStatus:
        """Return how many bytes an upload session has received.  Raises `UploadUnknown`."""

    def cancel(self, repository: Repository, session: str) -> None:
        """End an upload session and delete its bytes.  Raises `UploadUnknown`."""

    async def append(
        self,
        repository: Repository,
        session: str,
        body: IByteStream,
        content_range: ContentRange | None,
        length: int | None,
    ) -> UploadStatus:
        """Append the bytes of `body` to a session.  `length` is the Content-Length, None for a chunked body.

        Raises `UploadUnknown`, `UploadOutOfOrder`, `SizeNotMatched` or `TooLarge`.  Cancelling keeps the bytes that
        have arrived.
        """

    async def commit(
        self,
        repository: Repository,
        session: str,
        digest: Digest,
        body: IByteStream,
        content_range: ContentRange | None,
        length: int | None,
    ) -> None:
        """Append the last bytes of a session and store all its bytes as the blob `digest`.

        Raises as `append` does.  Also raises `DigestNotMatched`, which ends the session.
        """

    async def mount(self, repository: Repository, digest: Digest, trace: Trace) -> bool:
        """Add a blob that is in the store to the repository.  Return False when the store does not have it."""

    async def push_manifest(
        self,
        repository: Repository,
        data: bytes,
        media_type: str,
        digest: Digest | None,
        tags: Sequence[Tag],
        trace: Trace,
    ) -> Pushed:
        """Store a manifest, under `digest` if one is given, and let `tags` name it.

        Raises `InvalidManifest` or `DigestNotMatched`, and `ManifestBlobUnknown` when a blob or manifest that it refers
        to is not available.
        """

    async def delete_tag(self, repository: Repository, tag: Tag, *, with_manifests: bool = False) -> None:
        """Delete a tag, and if wanted the manifests to which nothing else leads.

        Raises `ManifestUnknown`, or `UnsupportedOperation` when deleting is turned off.
        """

    async def delete_manifest(self, repository: Repository, digest: Digest) -> None:
        """Delete a manifest and every tag that names it.  Raises as `delete_tag` does."""

    async def delete_blob(self, repository: Repository, digest: Digest) -> None:
        """Delete a blob from the repository.  Raises `BlobUnknown`, or `UnsupportedOperation` as `delete_tag` does."""
