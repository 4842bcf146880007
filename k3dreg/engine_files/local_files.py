"""Read the engine's files in place, where this process can open them."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

from twisted.internet.interfaces import IConsumer

from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.engine_files.directories import EngineDirectories, EngineDirectory, SameDirectories
from k3dreg.engine_files.engine_files import FileStat, read_verified
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, ContentGone, FileAbsent, FilesUnreachable
from k3dreg.streaming.content import IBlob, IContentSink
from k3dreg.streaming.file_handles import FileHandle
from k3dreg.streaming.file_producer import FileSending
from k3dreg.streaming.workers import Workers

# Bytes that one call in a worker thread moves.  The call itself then costs less than 1% of the work, and a client that
# follows the layer is told of new bytes some hundred times a second.
_STEP = 8 * 1024 * 1024
# O_NONBLOCK: without it, opening a pipe would wait until another process opens its other end.
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_DIRECTORY = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


def files_here(engine: IEngineRequests, workers: Workers, docker_root: str = "", content_store: str = "") -> LocalFiles:
    """Return access to the engine's files on this machine, at the engine's paths or below two directories.

    `docker_root` and `content_store`: see `SameDirectories`; "" for the engine's paths.
    """
    return LocalFiles(workers, SameDirectories(engine, docker_root=docker_root, content_store=content_store))


class LocalFiles:
    """Access to the engine's files in place (`IEngineFiles`).  `places` translates the engine's paths."""

    def __init__(self, workers: Workers, places: EngineDirectories) -> None:
        self._workers = workers
        self._places = places

    async def stat(self, path: str) -> FileStat:
        """Return the kind and size of the file at `path`: see `IEngineFiles`."""
        here = await self._places.locate(path)
        return await self._workers.run(_stat, here)

    async def read(self, path: str, limit: int) -> bytes:
        """Return the whole content of a small file: see `IEngineFiles`."""
        here = await self._places.locate(path)
        return await self._workers.run(_read, here, limit)

    async def blob(self, path: str, digest: Digest, size: int | None = None) -> IBlob:
        """Return the file as a blob, which opens the file each time it is sent or read: see `IEngineFiles`."""
        here = await self._places.locate(path)
        found = await self._workers.run(_size, here)
        if size is not None and size != found:
            raise ContentError(f"{digest} has {found} bytes on the engine's disk, not {size}")
        return LocalBlob(self._workers, lambda: _PlaceHandle(here), digest, found)

    async def fill(self, directory: str, sink: IContentSink, progress: Callable[[], Awaitable[None]]) -> None:
        """Pass files to `sink` in the order in which it wants them, read in worker threads: see `IEngineFiles`."""
        tree = LocalTree(await self._places.locate(directory))
        try:
            while await self._workers.run(tree.give, sink):
                await progress()
            await progress()
        finally:
            self._workers.clean_up(tree.close)

    async def close(self) -> None:
        """Do nothing: reading in place creates nothing in the engine."""


class LocalBlob:
    """A file of the engine's as a blob, open only while it is sent or read."""

    def __init__(self, workers: Workers, open_file: Callable[[], FileHandle], digest: Digest, size: int) -> None:
        """`open_file` must not block.  It returns a new handle, which the blob closes."""
        self.digest = digest
        self.size = size
        self._workers = workers
        self._open_file = open_file

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Send the bytes from `start` up to, not including, `stop` to `consumer`, as `IBlob` says.

        Raises as `FileSending.run`: `ContentGone` when the file was removed or has become shorter.
        """
        handle = self._open_file()
        try:
            await FileSending(self._workers, handle, consumer).run(start, stop)
        finally:
            self._workers.clean_up(handle.close)

    async def read(self) -> bytes:
        """Return the whole content.  Raises as `read_verified`."""
        return await read_verified(self.digest, self.size, self._read)

    async def _read(self) -> bytes:
        handle = self._open_file()
        try:
            return await self._workers.run(handle.read, 0, self.size)
        finally:
            self._workers.clean_up(handle.close)


class _PlaceHandle(FileHandle):
    """A handle of the file at `place`, which it opens at its first use."""

    def __init__(self, place: EngineDirectory) -> None:
        super().__init__()
        self._place = place

    def _open(self) -> int:
        try:
            return _open(self._place)
        except FileAbsent as error:
            raise ContentGone("a file of the engine's is not there any more") from error


class LocalTree:
    """The files below one directory, read for a sink.  The owner calls `close` in the end.

    The names come from images, which may be hostile, so no symbolic link is followed.
    """

    def __init__(self, root: EngineDirectory) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._closed = False
        self._file: int | None = None
        # The open directories on the path of the last file, outermost first.  The next file is usually close to it.
        self._way: list[tuple[bytes, int]] = []

    def give(self, sink: IContentSink) -> bool:
        """Pass about `_STEP` bytes to `sink`, and return whether it wants more.

        For worker threads.  Raises as `IEngineFiles.fill`.
        """
        with self._lock, _errors():
            given = 0
            while sink.wanted is not None and given < _STEP:
                if self._closed:
                    raise ContentGone("the reading of a layer was cancelled")
                if self._file is None:
                    self._file = self._open(sink.wanted)
                # Up to the size in the layer's tar, not up to the file's end: the file may have changed.
                count = os.readv(self._file, [sink.room()])
                if not count:
                    raise ContentError("a file of a layer is shorter than the layer's tar says")
                ends = count == sink.missing
                sink.took(count)
                given += count
                if ends:
                    descriptor, self._file = self._file, None
                    os.close(descriptor)
            sink.flush()
            return sink.wanted is not None

    def close(self) -> None:
        """Close every file.  For worker threads: it waits for a `give` that still runs after a cancelled `fill`."""
        self._closed = True
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            while self._way:
                os.close(self._way.pop()[1])

    def _open(self, path: bytes) -> int:
        *directories, name = path.split(b"/")
        descriptor = os.open(name, _OPEN_FILE, dir_fd=self._enter(directories))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ContentError("what a layer's tar calls a file is none on the engine's disk")
        return descriptor

    def _enter(self, directories: list[bytes]) -> int:
        """Return a descriptor of the innermost of nested directories.

        Each is opened relative to the one before it and without following links, so no link leads out of the root.
        """
        if not self._way:
            with self._root.use() as root:
                self._way.append((b"", os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
        same = 0
        while same < min(len(directories), len(self._way) - 1) and directories[same] == self._way[same + 1][0]:
            same += 1
        while len(self._way) > same + 1:
            os.close(self._way.pop()[1])
        for name in directories[same:]:
            self._way.append((name, os.open(name, _OPEN_DIRECTORY, dir_fd=self._way[-1][1])))
        return self._way[-1][1]


# -- what runs in worker threads --------------------------------------------------------------------


@contextmanager
def _errors() -> Generator[None]:
    """Turn `OSError` into k3dreg's errors.  Their texts name no paths, because clients see them."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise FileAbsent("the engine's host has no such file") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ContentError("a layer's file is behind a symbolic link") from None
        raise FilesUnreachable(
            f"the engine's files cannot be read in place: {os.strerror(error.errno or 0)}"
        ) from error


def _stat(place: EngineDirectory) -> FileStat:
    with _errors(), place.use() as path:
        found = os.stat(path)
    return FileStat(found.st_size, stat.S_ISREG(found.st_mode), stat.S_ISDIR(found.st_mode))


def _open(place: EngineDirectory) -> int:
    with _errors(), place.use() as path:
        descriptor = os.open(path, _OPEN_FILE)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileAbsent("it is not a regular file")
    return descriptor


def _size(place: EngineDirectory) -> int:
    """Return the size in bytes of a regular file, which must be readable."""
    descriptor = _open(place)
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _read(place: EngineDirectory, limit: int) -> bytes:
    with _errors(), place.use() as path, open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ContentError(f"a file of the engine's has more than {limit} bytes")
    return data
