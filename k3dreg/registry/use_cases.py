"""Interfaces of the use cases, as the web package calls them, and the values that they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from attrs import frozen

from k3dreg.formats.basic_auth import BasicAuth, Credentials
from k3dreg.formats.upload_session import ContentRange
from k3dreg.oci.digest import Digest
from k3dreg.oci.listing import Names
from k3dreg.oci.reference import Reference, Repository, Tag
from k3dreg.reporting.trace import Trace
from k3dreg.store.interfaces import PushedManifest
from k3dreg.streaming.content import IBlob, IByteStream, ServedManifest


class IFallback(Protocol):
    """Where content may be had that no source gives."""

    async def manifest(self, reference: Reference, shown: Credentials | None, trace: Trace) -> ServedManifest:
        """A manifest, as its registry has it now.  `shown` is what the client sent.

        Raises `NotFound`, or a `Refused` that tells whether credentials would help.
        """

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """Some content of a repository; it may still be arriving.  Raises `NotFound`, `Refused`, `StoreError`."""


class IRegistry(Protocol):
    """The use case of a pull, as the web package calls it."""

    async def manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        """What `reference` means now.  `authorization` is what the client sent.

        Raises `NotFound`, `Refused`, `EngineError`, `ContentError` or `StoreError`.  Cancelling leaves a pull, an
        export and a repair running for the next request.
        """

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """A blob of some image; its bytes may still be arriving.  Raises as `manifest` does."""


class IDiscovery(Protocol):
    """The use case of finding out what is here, as the web package calls it."""

    async def tags(self, repository: Repository, *, next_page: bool = False) -> Sequence[Names]:
        """Return the tags of a repository, in one or more lists that belong together.  Raises `NameUnknown`.

        `next_page`: the client has had a page of them, so Docker is not asked again if it was a moment ago.
        """

    async def repositories(self, *, next_page: bool = False) -> Sequence[Names]:
        """Return the names of this registry's own repositories; as `tags`."""

    def referrers(
        self, repository: Repository, subject: Digest, last: str | None, limit: int
    ) -> Sequence[PushedManifest]:
        """Return at most `limit` manifests that refer to a subject, which need not be here, ordered by digest.

        They have no annotations.  They are those behind the digest `last`; None is before all.
        """

    async def descriptors(
        self, repository: Repository, digests: Sequence[Digest], limit: int
    ) -> Mapping[Digest, bytes]:
        """See `IPushed`."""


@frozen
class UploadStatus:
    """An upload session: where it is, and how many bytes it has."""

    repository: Repository
    session: str
    received: int


@frozen
class Pushed:
    """A manifest that was taken."""

    digest: Digest
    subject: Digest | None = None
    tags: tuple[Tag, ...] = ()


class IUploads(Protocol):
    """The use case of a push, and of taking things back, as the web package calls it.

    Sizes are in bytes.  What a coroutine that ends well has taken is on disk for good.  All of it may raise
    `StoreFull` and `StoreError`; whatever adds to a repository of another registry, `NotOurs`.
    """

    @property
    def deleting(self) -> bool:
        """Whether anything may be deleted."""

    def open(self, repository: Repository, algorithm: str = "sha256") -> UploadStatus:
        """A new upload session, for a blob whose digest is likely of this algorithm.  Raises `TooManyUploads`."""

    def status(self, repository: Repository, session: str) -> UploadStatus:
        """Raises `UploadUnknown`."""

    def cancel(self, repository: Repository, session: str) -> None:
        """Forget a session and what it has.  Raises `UploadUnknown`."""

    async def append(
        self,
        repository: Repository,
        session: str,
        body: IByteStream,
        content_range: ContentRange | None,
        length: int | None,
    ) -> UploadStatus:
        """Take the bytes of `body`, of which there are `length` if that is known.

        Raises `UploadUnknown`, `UploadOutOfOrder`, `SizeNotMatched`, `TooLarge`.  Cancelling keeps what has come.
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
        """Take the last bytes and make all of them the blob `digest`.

        Raises as `append` does, and `DigestNotMatched`, after which the session is gone.
        """

    async def mount(self, repository: Repository, digest: Digest, trace: Trace) -> bool:
        """Make a blob that is here already a part of the repository; False when it is not here."""

    async def push_manifest(
        self,
        repository: Repository,
        data: bytes,
        media_type: str,
        digest: Digest | None,
        tags: Sequence[Tag],
        trace: Trace,
    ) -> Pushed:
        """Take a manifest, under `digest` if one is given, and let `tags` name it.

        Raises `InvalidManifest`, `DigestNotMatched`, and `ManifestBlobUnknown` when a part of it is not here.
        """

    async def delete_tag(self, repository: Repository, tag: Tag) -> None:
        """Raises `ManifestUnknown`, or `UnsupportedOperation` when deleting is turned off; so do the next two."""

    async def delete_manifest(self, repository: Repository, digest: Digest) -> None:
        """The manifest and every tag of it.  Raises `ManifestUnknown`."""

    async def delete_blob(self, repository: Repository, digest: Digest) -> None:
        """Raises `BlobUnknown`."""
