"""Interfaces of the engine's own files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import frozen

from k3dreg.oci.digest import Digest
from k3dreg.streaming.content import IBlob, IContentSink


@frozen
class FileStat:
    """A file of the engine's host.  `size` in bytes; it means nothing for a directory."""

    size: int
    is_file: bool
    is_directory: bool


class IEngineFiles(Protocol):
    """Files of the engine's host, read only.

    Paths are absolute and those of the *engine's* host, wherever k3dreg runs.  All of it raises `FileAbsent` when
    there is no such file, `FilesUnreachable` when this way to the files is closed, and `EngineUnavailable`.
    """

    async def stat(self, path: str) -> FileStat:
        """What is there."""

    async def read(self, path: str, limit: int) -> bytes:
        """A small file, whole.  Raises `ContentError` if it has more than `limit` bytes."""

    async def blob(self, path: str, digest: Digest, size: int | None = None) -> IBlob:
        """The file as a blob.  It is not verified against `digest`, but a file that is not `size` long is refused.

        Raises `ContentError` for that.  If the file goes away or changes its length while it is sent, the sending
        fails; the last byte is then never sent.
        """

    async def fill(self, directory: str, sink: IContentSink, progress: Callable[[], Awaitable[None]]) -> None:
        """Give `sink` the contents of all the files it wants, which are in `directory` or below.

        `progress` is called in the reactor's thread whenever some were given, at most 8 MiB; the next are given when it
        has returned (that is the back-pressure).  Symbolic links are never followed.
        Raises `ContentError` or `FileAbsent` when a file is not as long as it should be or not there, and what `sink`
        raises.  Cancelling waits for nothing; the sink may get some more bytes.
        """

    async def close(self) -> None:
        """Undo what was done on the engine's side for reading its files.  Logged, not raised, if that fails."""
