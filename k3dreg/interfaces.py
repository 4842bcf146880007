"""What crosses rooms.  Adapters implement these, use cases are given them, `service` joins the two.

Every coroutine here may raise `k3dreg.model.errors.K3dregError`s; each says which.  Cancelling the Deferred
around a coroutine ends that caller's own part of the work and nobody else's.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from attrs import field, frozen
from twisted.internet.interfaces import IConsumer
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import Attribute, Interface

from k3dreg.model.activity import Activity, RequestReport
from k3dreg.model.credentials import BasicAuth, Credentials
from k3dreg.model.descriptor import Descriptor
from k3dreg.model.digest import Digest
from k3dreg.model.engine import EngineImage, EngineInfo, PullProgress
from k3dreg.model.overview import Live, Overview
from k3dreg.model.reference import Reference, Repository, Tag
from k3dreg.model.trace import Trace
from k3dreg.protocol.upload import ContentRange


class IByteStream(Interface):
    """Bytes that come from elsewhere, taken when the reader is ready for them (that is the back-pressure)."""

    async def read() -> bytes:
        """The next bytes, some hundred KiB where the source is fast; b"" once, at the end.

        Raises `EngineSilent` when nothing came for the stream's limit, another `K3dregError` when it broke.
        Cancelling closes the stream.
        """

    def close() -> None:
        """Give up the rest.  Safe at any time, any number of times."""


class IBlob(Interface):
    """Content of a known digest and size that can be sent to a consumer, whole or in part.

    It may be a file, or bytes that are still arriving.
    """

    digest: Digest = Attribute("what the content hashes to")
    size: int = Attribute("bytes")

    async def send(consumer: IConsumer, start: int, stop: int) -> None:
        """Write the bytes from `start` up to, not including, `stop` to `consumer`, at the consumer's pace.

        Registers a producer with `consumer` and unregisters it in the end.  Returns when the last byte has been
        written.  When it raises (`ContentError`, `StoreError`, `EngineError`), fewer bytes were written and the
        caller must abort the connection.  Of content not yet verified the last byte is held back until it is.
        Cancelling stops writing; the consumer is the canceller's to close.
        """

    async def read() -> bytes:
        """All of it.  For manifests and configs: raises `ContentError` if it has more than 8 MiB."""


class ISocketConsumer(IConsumer):
    """A consumer whose bytes may go into a socket as they are, and so may be put there by somebody else."""

    def way_around() -> object:
        """The transport that `write` leads to without changing anything; None if there is none, or not now."""

    def went_around(size: int) -> None:
        """So many bytes were put into that transport's socket: they count as written."""


class IFileHandle(Interface):
    """A file on this machine's disk that is read at offsets, from any thread, several at once."""

    def read(offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; b"" at the end of what is there.  Call it in a worker thread.

        Raises `ContentGone` when the file is not there, or the handle is closed.
        """

    def close() -> None:
        """No more reads; one that is under way is not disturbed.  Safe at any time, any number of times."""


class IBlobWriter(Interface):
    """One blob on its way into a store: stage, verify, rename.

    `write`, `commit` and `abort` do I/O and hash: call them in a worker thread, one at a time.
    """

    written: int = Attribute("bytes written so far")

    def write(data: bytes | memoryview) -> None:
        """Append.  Raises `StoreFull` or `StoreError`."""

    def open_reader() -> IFileHandle:
        """A handle on what has been written and will be.  It stays readable after `commit`, `abort` and eviction.

        It is the caller's to close.  Raises `StoreError`.
        """

    def commit(digest: Digest | None = None, size: int | None = None) -> Digest:
        """Verify, make visible, and return the digest.  Content that was there already is kept as it is.

        Raises `DigestMismatch` if the bytes are not `size` many or do not hash to `digest`; nothing is visible then.
        """

    def abort() -> None:
        """Forget it.  Safe at any time, any number of times, after `commit` too."""


class IBlobStore(Interface):
    """Content by digest, on this machine's disk."""

    def get(digest: Digest) -> IBlob | None:
        """The blob, or None.  Counts as a use.  No I/O."""

    def has(digest: Digest) -> bool:
        """Whether it is here.  Does not count as a use.  No I/O."""

    def size_of(digest: Digest) -> int:
        """Bytes; 0 for a blob that is not here.  Not a use.  No I/O."""

    def writer(algorithm: str = "sha256", *, durable: bool = False) -> IBlobWriter:
        """A writer for one more blob.  Call it in a worker thread.

        `durable`: once it is committed, it survives a power failure.
        """

    async def put(data: bytes) -> Digest:
        """Keep a small document; returns its sha256 digest.  Raises `StoreFull` or `StoreError`."""

    def hold(digests: Iterable[Digest]) -> Callable[[], None]:
        """Keep these from being evicted, here already or not, until the returned function is called."""

    async def make_durable(digest: Digest) -> bool:
        """Let a blob survive a power failure from now on; False when it is not here, or not whole."""

    async def discard(digest: Digest) -> None:
        """Remove a blob, e.g. one found to be damaged.  A blob that is not here is no error."""

    async def drop(digest: Digest) -> bool:
        """Remove a blob that nobody wants: not if it is held, or pinned.  Returns whether it is gone."""


class IEngine(Interface):
    """A container engine, by its Engine API.

    All of it raises `EngineUnavailable` when the engine cannot be reached and `EngineError` for an answer
    that makes no sense.  A lost engine is found again at the next call.
    """

    async def info() -> EngineInfo:
        """What engine this is.  Asked once per connection to it and then remembered until it was lost."""

    async def inspect(name: str) -> EngineImage:
        """The image by reference or ID, as it is: the engine is asked after the call.  Raises `ImageNotInEngine`."""

    async def pull(name: str, registry_auth: str, progress: Callable[[PullProgress], None]) -> None:
        """Let the engine pull `name` (a reference with tag or digest).

        `registry_auth` is the value of `X-Registry-Auth`, "" for none.  Returns when the image is there.
        Raises `ManifestUnknown`, or a `Refused` of the right kind with the engine's own words.
        Cancelling makes the engine stop the pull.
        """

    async def distribution(name: str, registry_auth: str) -> Descriptor:
        """What the image's own registry says `name` is: the engine asks it.

        Raises `ManifestUnknown`, or a `Refused`, as `pull` does.
        """

    async def save(image: Digest) -> IByteStream:
        """The archive stream of `GET /images/get` for an image ID.  Raises `ImageNotInEngine`."""


class ILooseContent(Interface):
    """Content that the engine has, whether it belongs to a whole image already or not."""

    async def loose(descriptor: Descriptor) -> IBlob | None:
        """The content, if the engine has it and it can be read one by one; None else.  Raises `EngineUnavailable`."""


class IImageSource(Interface):
    """A way to the bytes of images that the engine holds."""

    name: str = Attribute("one word, for logs")
    at_hand: bool = Attribute("whether what it opens costs nothing, so that there is no use in opening it beforehand")

    async def root(image: EngineImage, trace: Trace) -> Descriptor:
        """The descriptor of the image's root: what its tag means to a client.

        Raises `NotFound` when this source does not serve such images, `ImageIncomplete` if the image is.
        """

    async def open(image: EngineImage, digest: Digest, trace: Trace) -> IBlob:
        """Some content of the image.  Raises `BlobUnknown` if it is not part of it, or not held."""


class ICatalogue(Interface):
    """Which content belongs to which image, remembered across restarts."""

    def images_with(digest: Digest) -> Sequence[EngineImage]:
        """The images that `digest` is known to be a part of, most recently seen first.  No I/O."""

    def root_of(image: EngineImage) -> Descriptor | None:
        """The root recorded for the image ID, if any.  No I/O."""

    def is_recorded(image: EngineImage) -> bool:
        """Whether `record` was called for this very `fingerprint`.  No I/O."""

    async def record(image: EngineImage, root: Descriptor, contents: Iterable[Digest]) -> None:
        """Remember the image's root and everything that is known to be part of it.  On disk when it returns."""

    async def forget(image: Digest) -> None:
        """The engine does not hold the image any more."""


class ICredentialSource(Interface):
    """Credentials for a registry."""

    async def credentials(registry: str) -> Credentials | None:
        """The credentials for this registry host ("docker.io" for Docker Hub), None for none.

        Trouble in finding them is logged, not raised: the pull goes on as one without.
        """

    async def registry_auth(registry: str) -> str:
        """The value of `X-Registry-Auth` for this registry host, "" for none."""

    def refused(registry: str) -> None:
        """The registry did not take what was given for it: what is remembered of it is forgotten."""


@frozen
class ServedManifest:
    """What a reference means.  The descriptor answers a HEAD; `open` gives the bytes for a GET.

    `open` may raise what `IRegistry.blob` raises.
    """

    descriptor: Descriptor
    open: Callable[[], Awaitable[IBlob]]


class IRegistry(Interface):
    """The use case of a pull, as the web room calls it."""

    async def manifest(reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        """What `reference` means now.  `authorization` is what the client sent.

        Raises `NotFound`, `Refused`, `EngineError`, `ContentError`, `StoreError`, or `NotYet` when finding out
        takes longer than a client waits.
        """

    async def blob(repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """A blob of some image; its bytes may still be arriving.  Raises as `manifest` does."""


class IEngineRequests(Interface):
    """Any request to the engine, for what `IEngine` has no word for."""

    async def info() -> EngineInfo:
        """As `IEngine.info`."""

    async def request(
        method: str,
        path: str,
        *,
        params: Mapping[str, str | list[str]] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | IBodyProducer | None = None,
        versioned: bool = True,
        patience: float | None = None,
    ) -> IResponse:
        """The answer's head, of a status below 400.  Its body is for `body` to read or close.

        `path` is percent-encoded.  Raises `EngineError` with the status and the engine's words, `EngineUnavailable`.
        """

    def body(response: IResponse, what: str) -> IByteStream:
        """The body of an answer; `what` it is completes "the connection was lost in the middle of ..."."""


@frozen
class FileStat:
    """A file of the engine's host.  `size` in bytes; it means nothing for a directory."""

    size: int
    is_file: bool
    is_directory: bool


class IContentSink(Interface):
    """What asks for the contents of a layer's files, one after the other.  All of it is for worker threads."""

    wanted: bytes | None = Attribute("the file whose content comes next, as a path in the directory; None: no more")
    missing: int = Attribute("how many bytes of it are still to come")

    def add(data: bytes | memoryview) -> None:
        """The next bytes of the wanted file, at most `missing`; at the last of them `wanted` becomes another."""

    def flush() -> None:
        """Pass on what was collected.  Called before a worker thread is given back."""


class IEngineFiles(Interface):
    """Files of the engine's host, read only.

    Paths are absolute and those of the *engine's* host, wherever k3dreg runs.  All of it raises `FileAbsent` when
    there is no such file, `FilesUnreachable` when this way to the files is closed, and `EngineUnavailable`.
    """

    name: str = Attribute("one word, for logs")

    async def stat(path: str) -> FileStat:
        """What is there."""

    async def read(path: str, limit: int) -> bytes:
        """A small file, whole.  Raises `ContentError` if it has more than `limit` bytes."""

    async def blob(path: str, digest: Digest, size: int | None = None) -> IBlob:
        """The file as a blob.  It is not verified against `digest`, but a file that is not `size` long is refused.

        Raises `ContentError` for that.  If the file goes away or changes its length while it is sent, the sending
        fails; the last byte is then never sent.
        """

    async def fill(directory: str, sink: IContentSink, progress: Callable[[], None]) -> None:
        """Give `sink` the contents of all the files it wants, which are in `directory` or below.

        `progress` is called in the reactor's thread whenever some were given.  Symbolic links are never followed.
        Raises `ContentError` or `FileAbsent` when a file is not as long as it should be or not there, and what `sink`
        raises.  Cancelling waits for nothing; the sink may get some more bytes.
        """

    async def close() -> None:
        """Undo what was done on the engine's side for reading its files.  Logged, not raised, if that fails."""


class IStaging(Interface):
    """Where uploads wait until they are blobs."""

    def begin(algorithm: str = "sha256") -> IBlobWriter:
        """A durable writer for one upload; no I/O.  Its `commit` takes a digest of any algorithm.

        `algorithm` is the likely one: content of another is hashed twice.
        """


@frozen
class PushedManifest:
    """A manifest that was pushed into a repository.

    `descriptor` is what a list of referrers says of it, so it has its `artifact_type` and annotations; `parts` are
    the digests of everything it refers to as a part of itself.  `since` is when it was pushed, in seconds since the
    epoch, and set by `IPushed.add_manifest`; 0 where it is not known.
    """

    descriptor: Descriptor
    parts: frozenset[Digest] = frozenset()
    subject: Digest | None = None
    since: float = field(default=0.0, eq=False)

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest


class IPushed(Interface):
    """What was pushed: repositories, and in each of them blobs, manifests and tags.  The bytes are in the blob store.

    The answers need no I/O.  The coroutines return when the change is on disk for good, and raise `StoreFull` or
    `StoreError` when it is not; cancelling one gives up the answer, not the change.  Changes take effect in the order
    in which they were asked for.
    """

    def repositories() -> Sequence[Repository]:
        """Those that hold anything, in lexical order of their names."""

    def has(repository: Repository) -> bool:
        """Whether anything was pushed there."""

    def tags(repository: Repository) -> Sequence[str]:
        """In lexical order."""

    def tagged(repository: Repository, tag: Tag) -> PushedManifest | None:
        """The manifest that a tag names."""

    def manifest(repository: Repository, digest: Digest) -> PushedManifest | None:
        """A manifest by its digest."""

    def manifests(repository: Repository) -> Sequence[PushedManifest]:
        """All of them."""

    def tagged_digests(repository: Repository) -> Collection[Digest]:
        """What its tags name."""

    def blobs(repository: Repository) -> Mapping[Digest, float]:
        """Its blobs, each with the time (seconds since the epoch) since which somebody may rely on it."""

    def has_blob(repository: Repository, digest: Digest) -> bool:
        """Whether the blob was pushed, or mounted, there.  Counts as a use: see `blobs`."""

    def referrers(repository: Repository, subject: Digest) -> Sequence[PushedManifest]:
        """The manifests whose subject it is, ordered by digest."""

    def keeps(digest: Digest) -> bool:
        """Whether any repository holds it, as a blob or as a manifest.  Such content is never evicted."""

    def was_pushed(digest: Digest) -> bool:
        """Whether any repository holds it, or has held it since the start, and `forget` was not called."""

    def let_go() -> Collection[Digest]:
        """What was held since the start and is not any more: its file may still be here."""

    def forget(digest: Digest) -> None:
        """What was let go is not here any more, or it is the engine's."""

    async def add_blob(repository: Repository, digest: Digest) -> None:
        """The blob, which is in the blob store durably, is now in this repository too."""

    async def add_manifest(repository: Repository, manifest: PushedManifest, tags: Iterable[Tag]) -> None:
        """The manifest, which is in the blob store durably, is now in this repository, and these tags name it."""

    async def remove_tag(repository: Repository, tag: Tag) -> bool:
        """Returns whether there was one."""

    async def remove_manifest(repository: Repository, digest: Digest) -> bool:
        """With all tags that name it.  Returns whether there was one."""

    async def remove_blobs(repository: Repository, digests: Iterable[Digest], *, unused_since: float = math.inf) -> int:
        """Those that nobody has relied on since then (see `blobs`); returns how many that were.

        The answers tell of it at once, before it is on disk, and take it back when it cannot be written.
        """


class IDiscovery(Interface):
    """The use case of finding out what is here, as the web room calls it."""

    async def tags(repository: Repository) -> Sequence[str]:
        """The tags of a repository in lexical order.  Raises `NameUnknown`."""

    async def repositories() -> Sequence[str]:
        """The names of this registry's own repositories in lexical order."""

    def referrers(repository: Repository, subject: Digest) -> Sequence[PushedManifest]:
        """The manifests that refer to a subject, which need not be here."""


class IImageNames(Interface):
    """Which images the engine has, by name."""

    async def names() -> Sequence[tuple[Repository, Tag]]:
        """Every name of every image.  A bare name is given as the engine spells it, and no registry is made up.

        Raises `EngineError`.
        """


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


class IImageEvents(Interface):
    """What happens to the engine's images."""

    async def follow(heard: Callable[[str], None]) -> None:
        """Tell of every name that an image is given, as the engine writes it, until the engine ends it.

        `heard` is called with "" when an image of any name may have come: at the beginning, too, when it is sure that
        what comes later will be told.  Raises `EngineUnavailable` when the connection is lost, or when nothing was
        told for long, and `EngineError` when the engine refuses.  Cancelling ends it.
        """


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


class IOrigin(Interface):
    """The registries that images come from, asked by k3dreg itself and not through the engine.

    All of it raises `Refused` of the right kind when a registry says no or cannot be reached, `DigestMismatch` when
    it sends other bytes than were asked for, and `StoreError`.
    """

    async def manifest(reference: Reference, credentials: Credentials | None) -> tuple[Descriptor, bytes]:
        """A manifest or index, verified if it is asked for by digest, and kept in the store.

        Raises `ManifestUnknown`.
        """

    async def blob(repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None) -> IBlob:
        """A blob as soon as it has begun to arrive; it is kept in the store.  Raises `BlobUnknown`.

        `size` in bytes, None if it is not known.  One download however many ask; cancelling leaves it running.
        """

    async def fetch(repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None) -> IBlob:
        """As `blob`, but once all of it is here and verified."""


class IFallback(Interface):
    """Where content may be had that no source gives."""

    async def manifest(reference: Reference, shown: Credentials | None, trace: Trace) -> ServedManifest:
        """A manifest by its digest.  `shown` is what the client sent.

        Raises `NotFound`, or a `Refused` that tells whether credentials would help.
        """

    async def blob(repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """Some content of a repository; it may still be arriving.  Raises `NotFound`, `Refused`, `StoreError`."""


class IRepair(Interface):
    """Mends images of which the engine has lost blobs (moby#49473)."""

    async def ensure(image: EngineImage, reference: Reference, shown: Credentials | None, trace: Trace) -> EngineImage:
        """The image, mended if the engine says that it lacks blobs; most are whole, and given back at once.

        `shown` is what the client sent.  Raises `ImageIncomplete` when it cannot be mended,
        `AuthenticationRequired` when credentials might help, and `EngineError`.  Cancelling leaves a repair running.
        """

    async def mend(image: EngineImage, reference: Reference, shown: Credentials | None, trace: Trace) -> EngineImage:
        """As `ensure`, for an image that was found to lack blobs by reading it: older engines do not say so."""


class IUsers(Interface):
    """Those who may use this registry."""

    async def knows(shown: BasicAuth) -> bool:
        """Whether it is the user and password of one of them.  Takes as long for a name that is nobody's.

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
