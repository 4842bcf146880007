"""Interfaces of the engine's own files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import frozen

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError
from k3dreg.streaming.content import IBlob, IContentSink

# Bytes: the limit of `IBlob.read`, which is for manifests and configs.
LARGEST_READ = 8 * 1024 * 1024


@frozen
class FileStat:
    """The kind and size of a file of the engine's host.  `size` in bytes is meaningless for a directory."""

    size: int
    is_file: bool
    is_directory: bool


class IEngineFiles(Protocol):
    """Read-only access to files of the engine's host.

    Paths are absolute paths of the *engine's* host, wherever k3dreg runs.  Every method raises `FileAbsent` when the
    engine's host has no such file, `FilesUnreachable` when its files cannot be read in this way, and
    `EngineUnavailable`.
    """

    async def stat(self, path: str) -> FileStat:
        """Return the kind and size of the file at `path`."""

    async def read(self, path: str, limit: int) -> bytes:
        """Return the whole content of a small file.  Raises `ContentError` if it has more than `limit` bytes."""

    async def blob(self, path: str, digest: Digest, size: int | None = None) -> IBlob:
        """Return the file as a blob.  Its `read` verifies the content against `digest`, its `send` does not.

        Raises `ContentError` if the file does not have `size` bytes.  If the file is removed or changes its size while
        it is sent, `send` of the blob fails before the last byte.
        """

    async def fill(self, directory: str, sink: IContentSink, progress: Callable[[], Awaitable[None]]) -> None:
        """Pass the content of every file that `sink` wants, in `directory` or below, to `sink`.

        `progress` is called in the reactor's thread after at most 8 MiB, and delays the next bytes until it has
        returned: that is the back-pressure.  Symbolic links are never followed.
        Raises `FileAbsent` for a missing file, `ContentError` for a file of another size than `sink` expects, and what
        `sink` raises.  Cancelling does not wait for a worker thread, which may pass some more bytes to `sink`.
        """

    async def close(self) -> None:
        """Remove what reading the files has created in the engine.  A failure is logged and not raised."""


async def read_verified(digest: Digest, size: int, read: Callable[[], Awaitable[bytes]]) -> bytes:
    """Return the content of a file of `size` bytes, from `read`, for `IBlob.read`.

    Raises `ContentError` if it does not hash to `digest`, or has more than `LARGEST_READ` bytes.
    """
    if size > LARGEST_READ:
        raise ContentError(f"{digest} has {size} bytes, which is too many for a document")
    data = await read()
    if Digest.of(data, digest.algorithm) != digest:
        raise ContentError(f"{digest} does not hash to its digest on the engine's disk")
    return data
