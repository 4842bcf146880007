"""Bytes on their way, and k3dreg's own content on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from twisted.internet.interfaces import IConsumer
from zope.interface import Attribute, Interface

from k3dreg.model.descriptor import Descriptor
from k3dreg.model.digest import Digest
from k3dreg.model.engine import EngineImage


class IByteStream(Interface):
    """Bytes that come from elsewhere, taken when the reader is ready for them (that is the back-pressure)."""

    async def read(least: int = 1) -> bytes:
        """The next bytes, some hundred KiB where the source is fast; b"" once, at the end.

        A stream may wait until `least` bytes are here, and need not.
        Raises `EngineSilent` when nothing came for the stream's limit, another `K3dregError` when it broke.
        Cancelling closes the stream.
        """

    def close() -> None:
        """Give up the rest.  Safe at any time, any number of times."""


class ITaking(Interface):
    """The rest of a stream for a worker thread, until it is given back."""

    def run(write: Callable[[memoryview], object], most: int) -> int:
        """Take what has arrived, and arrives meanwhile, and `write` it, `most` bytes of the stream; how many it was.

        Call it once, in a worker thread; it never waits for the other end.  What `write` gets is valid only during
        the call.  Raises what `write` raises.
        """

    def give_back() -> None:
        """The stream goes on.  Call it in the reactor's thread, once `run` has ended, whichever way."""


class ITakenStream(IByteStream):
    """A stream that others than the reactor's thread may read from."""

    def take_over() -> ITaking | None:
        """Its rest, if nothing that has arrived is left to `read`, and it is possible at all."""


class IPieceStream(IByteStream):
    """A stream whose bytes can be had without being joined: to copy a GB costs as much as to receive it."""

    async def read_pieces(least: int = 1) -> list[bytes | memoryview]:
        """As `read`, but in the pieces in which they came; [] at the end.  The views are of bytes: they stay."""


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


class IStaging(Interface):
    """Where uploads wait until they are blobs."""

    def begin(algorithm: str = "sha256") -> IBlobWriter:
        """A durable writer for one upload; no I/O.  Its `commit` takes a digest of any algorithm.

        `algorithm` is the likely one: content of another is hashed twice.
        """


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
