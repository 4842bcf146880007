"""Interfaces of bytes on their way: streams, blobs, files that are read at offsets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import frozen
from twisted.internet.interfaces import IConsumer

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest


class IByteStream(Protocol):
    """Bytes that come from elsewhere, taken when the reader is ready for them (that is the back-pressure)."""

    async def read(self, least: int = 1) -> bytes:
        """The next bytes, some hundred KiB where the source is fast; b"" once, at the end.

        A stream may wait until `least` bytes are here, and need not.
        Raises `EngineSilent` when nothing came for the stream's limit, another `K3dregError` when it broke.
        Cancelling closes the stream.
        """

    def close(self) -> None:
        """Give up the rest.  Safe at any time, any number of times."""


class IBlob(Protocol):
    """Content of a known digest and size that can be sent to a consumer, whole or in part.

    It may be a file, or bytes that are still arriving.
    """

    @property
    def digest(self) -> Digest:
        """What the content hashes to."""

    @property
    def size(self) -> int:
        """Bytes."""

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Write the bytes from `start` up to, not including, `stop` to `consumer`, at the consumer's pace.

        Registers a producer with `consumer` and unregisters it in the end.  Returns when the last byte has been
        written.  When it raises (`ContentError`, `StoreError`, `EngineError`), fewer bytes were written and the
        caller must abort the connection.  Of content not yet verified the last byte is held back until it is.
        Cancelling stops writing; the consumer is the canceller's to close.
        """

    async def read(self) -> bytes:
        """All of it.  For manifests and configs: raises `ContentError` if it has more than 8 MiB."""


class ISocketConsumer(IConsumer):
    """A consumer whose bytes may go into a socket as they are, and so may be put there by somebody else."""

    def way_around() -> object:
        """The transport that `write` leads to without changing anything; None if there is none, or not now."""

    def went_around(size: int) -> None:
        """So many bytes were put into that transport's socket: they count as written."""


class IFileHandle(Protocol):
    """A file on this machine's disk that is read at offsets, from any thread, several at once."""

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; b"" at the end of what is there.  Call it in a worker thread.

        Raises `ContentGone` when the file is not there, or the handle is closed.
        """

    def close(self) -> None:
        """No more reads; one that is under way is not disturbed.  Safe at any time, any number of times."""


class IContentSink(Protocol):
    """What asks for the contents of a layer's files, one after the other.  All of it is for worker threads."""

    @property
    def wanted(self) -> bytes | None:
        """The file whose content comes next, as a path in the directory; None: no more."""

    @property
    def missing(self) -> int:
        """How many bytes of it are still to come."""

    def room(self) -> memoryview:
        """Where the next bytes of the wanted file may be put: some, at most `missing`.  Until the next call of any."""

    def took(self, count: int) -> None:
        """So many bytes were put into the last `room`; at the last of the file `wanted` becomes another."""

    def add(self, data: bytes | memoryview) -> None:
        """The next bytes of the wanted file, at most `missing`, from elsewhere; then as `took`."""

    def flush(self) -> None:
        """Pass on what was collected.  Called before a worker thread is given back."""


@frozen
class ServedManifest:
    """What a reference means.  The descriptor answers a HEAD; `open` gives the bytes for a GET.

    `open` may raise what `IRegistry.blob` raises.
    """

    descriptor: Descriptor
    open: Callable[[], Awaitable[IBlob]]
