"""What the web room calls, and what those who watch are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen
from zope.interface import Attribute, Interface

from k3dreg.interfaces.content import IBlob, IByteStream
from k3dreg.interfaces.pushed import PushedManifest
from k3dreg.interfaces.sources import ServedManifest
from k3dreg.model.activity import Activity, RequestReport
from k3dreg.model.credentials import BasicAuth
from k3dreg.model.digest import Digest
from k3dreg.model.overview import Live, Overview
from k3dreg.model.reference import Reference, Repository, Tag
from k3dreg.model.trace import Trace
from k3dreg.protocol.listing import Names
from k3dreg.protocol.upload import ContentRange


class IRegistry(Interface):
    """The use case of a pull, as the web room calls it."""

    async def manifest(reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        """What `reference` means now.  `authorization` is what the client sent.

        Raises `NotFound`, `Refused`, `EngineError`, `ContentError`, `StoreError`, or `NotYet` when finding out
        takes longer than a client waits.
        """

    async def blob(repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """A blob of some image; its bytes may still be arriving.  Raises as `manifest` does."""


class IDiscovery(Interface):
    """The use case of finding out what is here, as the web room calls it."""

    async def tags(repository: Repository, *, next_page: bool = False) -> Sequence[Names]:
        """Return the tags of a repository, in one or more lists that belong together.  Raises `NameUnknown`.

        `next_page`: the client has had a page of them, so Docker is not asked again if it was a moment ago.
        """

    async def repositories(*, next_page: bool = False) -> Sequence[Names]:
        """Return the names of this registry's own repositories; as `tags`."""

    def referrers(repository: Repository, subject: Digest, last: str | None, limit: int) -> Sequence[PushedManifest]:
        """Return at most `limit` manifests that refer to a subject, which need not be here, ordered by digest.

        They have no annotations.  They are those behind the digest `last`; None is before all.
        """

    async def descriptors(repository: Repository, digests: Sequence[Digest], limit: int) -> Mapping[Digest, bytes]:
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


class IUploads(Interface):
    """The use case of a push, and of taking things back, as the web room calls it.

    Sizes are in bytes.  What a coroutine that ends well has taken is on disk for good.  All of it may raise
    `StoreFull` and `StoreError`; whatever adds to a repository of another registry, `NotOurs`.
    """

    deleting: bool = Attribute("whether anything may be deleted")

    def open(repository: Repository, algorithm: str = "sha256") -> UploadStatus:
        """A new upload session, for a blob whose digest is likely of this algorithm.  Raises `TooManyUploads`."""

    def status(repository: Repository, session: str) -> UploadStatus:
        """Raises `UploadUnknown`."""

    def cancel(repository: Repository, session: str) -> None:
        """Forget a session and what it has.  Raises `UploadUnknown`."""

    async def append(
        repository: Repository, session: str, body: IByteStream, content_range: ContentRange | None, length: int | None
    ) -> UploadStatus:
        """Take the bytes of `body`, of which there are `length` if that is known.

        Raises `UploadUnknown`, `UploadOutOfOrder`, `SizeNotMatched`, `TooLarge`.  Cancelling keeps what has come.
        """

    async def commit(
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

    async def mount(repository: Repository, digest: Digest, trace: Trace) -> bool:
        """Make a blob that is here already a part of the repository; False when it is not here."""

    async def push_manifest(
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

    async def delete_tag(repository: Repository, tag: Tag) -> None:
        """Raises `ManifestUnknown`, or `UnsupportedOperation` when deleting is turned off; so do the next two."""

    async def delete_manifest(repository: Repository, digest: Digest) -> None:
        """The manifest and every tag of it.  Raises `ManifestUnknown`."""

    async def delete_blob(repository: Repository, digest: Digest) -> None:
        """Raises `BlobUnknown`."""


class IUsers(Interface):
    """Those who may use this registry."""

    async def knows(shown: BasicAuth, client: str = "") -> bool:
        """Whether it is the user and password of one of them.  Takes as long for a name that is nobody's.

        `client` is the address it comes from: clients take turns.
        Raises `NotYet` when too many ask at once.
        """


class IObserver(Interface):
    """Told of what goes on.  All of it is called in the reactor's thread, is quick and raises nothing."""

    def began(activity: Activity) -> None:
        """Something has begun.  `ended` is called with the same object."""

    def ended(activity: Activity, seconds: float, refusal: str) -> None:
        """It has ended, after `seconds`; `refusal` is the class of the error it failed with, "" for none."""

    def answered(report: RequestReport) -> None:
        """A request has ended, however it did."""


class IMonitoring(Interface):
    """What the web room shows of the daemon itself, to people and programs that look after it."""

    async def engine_trouble() -> str:
        """Why the engine cannot be used, in a sentence; "" when it answers.  Takes a few seconds at most."""

    async def metrics() -> tuple[str, bytes]:
        """The media type and the text of all metrics."""

    def live() -> Live:
        """What is under way and what has ended lately.  No I/O."""

    async def overview() -> Overview:
        """What is here.  An engine that does not answer is told of in it, not raised."""
