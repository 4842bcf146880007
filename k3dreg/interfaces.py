"""What crosses rooms.  Adapters implement these, use cases are given them, `service` joins the two.

Every coroutine here may raise `k3dreg.model.errors.K3dregError`s; each says which.  Cancelling the Deferred
around a coroutine ends that caller's own part of the work and nobody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from twisted.internet.interfaces import IConsumer
from zope.interface import Attribute, Interface

from k3dreg.model.descriptor import Descriptor
from k3dreg.model.digest import Digest
from k3dreg.model.engine import EngineImage, EngineInfo, PullProgress
from k3dreg.model.trace import Trace


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


class IBlobWriter(Interface):
    """One blob on its way into a store: stage, verify, rename.

    `write`, `commit` and `abort` do I/O and hash: call them in a worker thread, one at a time.
    """

    written: int = Attribute("bytes written so far")

    def write(data: bytes | memoryview) -> None:
        """Append.  Raises `StoreFull` or `StoreError`."""

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

    def writer(algorithm: str = "sha256") -> IBlobWriter:
        """A writer for one more blob.  Call it in a worker thread."""

    async def put(data: bytes) -> Digest:
        """Keep a small document; returns its sha256 digest.  Raises `StoreFull` or `StoreError`."""

    def hold(digests: Iterable[Digest]) -> Callable[[], None]:
        """Keep these from being evicted, here already or not, until the returned function is called."""

    async def discard(digest: Digest) -> None:
        """Remove a blob, e.g. one found to be damaged.  A blob that is not here is no error."""


class IEngine(Interface):
    """A container engine, by its Engine API.

    All of it raises `EngineUnavailable` when the engine cannot be reached and `EngineError` for an answer
    that makes no sense.  A lost engine is found again at the next call.
    """

    async def info() -> EngineInfo:
        """What engine this is.  Asked once per connection to it and then remembered until it was lost."""

    async def inspect(name: str) -> EngineImage:
        """The image by reference or ID, asked anew each time.  Raises `ImageNotInEngine`."""

    async def pull(name: str, registry_auth: str, progress: Callable[[PullProgress], None]) -> None:
        """Let the engine pull `name` (a reference with tag or digest).

        `registry_auth` is the value of `X-Registry-Auth`, "" for none.  Returns when the image is there.
        Raises `ManifestUnknown`, or a `Refused` of the right kind with the engine's own words.
        Cancelling makes the engine stop the pull.
        """

    async def save(image: Digest) -> IByteStream:
        """The archive stream of `GET /images/get` for an image ID.  Raises `ImageNotInEngine`."""


class IImageSource(Interface):
    """A way to the bytes of images that the engine holds."""

    name: str = Attribute("one word, for logs")

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

    async def registry_auth(registry: str) -> str:
        """The value of `X-Registry-Auth` for this registry host, "" for none."""
