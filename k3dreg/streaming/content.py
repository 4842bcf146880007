"""Interfaces of content that is being read or sent: streams, blobs, and files that are read at offsets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import frozen
from twisted.internet.interfaces import IConsumer

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest


class IByteStream(Protocol):
    """The bytes of a body that another program sends, read at the reader's pace: an unread stream stops its source.

    The reader reads the stream to its end or closes it.
    """

    async def read(self, least: int = 1) -> bytes:
        """Return the next bytes, some hundred KiB where the source is fast; b"" at the end.

        `least` is a hint: a stream may wait until so many bytes have arrived.  Raises `EngineSilent` when no byte
        arrived within the stream's time limit, another `K3dregError` when it broke.  Cancelling closes the stream.
        """

    def close(self) -> None:
        """Close the stream without reading the rest.  Safe at any time, any number of times."""


class IBlob(Protocol):
    """Content of a known digest and size that can be sent to a consumer, whole or in part.

    It may be a file, or bytes that are still arriving.  The caller need not close it.
    """

    @property
    def digest(self) -> Digest:
        """Return the digest of the content."""

    @property
    def size(self) -> int:
        """Return the size in bytes."""

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Write the bytes from `start` up to, not including, `stop` to `consumer`, at the consumer's pace.

        Registers a producer with `consumer` and unregisters it at the end.  Returns when the last byte has been
        written.  When it raises (`ContentError`, `StoreError`, `EngineError`), fewer bytes were written and the
        caller must abort the connection.  The last byte of unverified content is not written before the content is
        verified.  Cancelling stops the writing; the canceller closes the consumer.
        """

    async def read(self) -> bytes:
        """Return the whole content of a manifest or config.

        Raises `ContentError` for content above the implementation's limit, which is at least 8 MiB.
        """


class ISocketConsumer(IConsumer):
    """A consumer that may write its bytes to a socket unchanged, so that sendfile(2) can put them there instead."""

    def bypass_transport() -> object:
        """Return the transport that `write` passes bytes to unchanged; None if there is none at the moment."""

    def bypassed(size: int) -> None:
        """Count `size` bytes as written: the caller has put them into the socket of that transport."""


class IFileHandle(Protocol):
    """A file on this machine's disk that several threads may read at offsets at once.  The caller closes it."""

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; b"" at the end of the file.  Call it in a worker thread.

        Raises `ContentGone` when the file does not exist or the handle is closed.
        """

    def close(self) -> None:
        """Refuse further reads.  Reads under way go on.  Safe at any time, any number of times."""


class IContentSink(Protocol):
    """An assembly of a layer, which asks for the contents of the layer's files one after the other.

    Call its methods in worker threads.
    """

    @property
    def wanted(self) -> bytes | None:
        """Return the path, in the layer's directory, of the file whose content is needed next; None after the last."""

    @property
    def missing(self) -> int:
        """Return how many bytes of the wanted file are still needed."""

    def room(self) -> memoryview:
        """Return a buffer for the next bytes of the wanted file, at most `missing` long.

        It is valid until the next call of any method.
        """

    def took(self, count: int) -> None:
        """Accept the `count` bytes that were written into the buffer that `room()` returned.

        After the last byte of a file, `wanted` names the next file.
        """

    def add(self, data: bytes | memoryview) -> None:
        """Copy the next bytes of the wanted file, at most `missing`, from `data`.  Otherwise as `took`."""

    def flush(self) -> None:
        """Write out the collected bytes.  The caller does so before it leaves the worker thread."""


@frozen
class ServedManifest:
    """The manifest that a reference names.  Its descriptor answers a HEAD; `open` returns the bytes for a GET.

    `open` may raise what `IRegistry.blob` raises.
    """

    descriptor: Descriptor
    open: Callable[[], Awaitable[IBlob]]
