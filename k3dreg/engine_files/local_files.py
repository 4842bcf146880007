"""The engine's files where they are directories of this machine: read in place."""

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
from k3dreg.engine_files.engine_files import FileStat
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, ContentGone, FileAbsent, FilesUnreachable
from k3dreg.streaming.content import IBlob, IContentSink
from k3dreg.streaming.file_handles import FileHandle
from k3dreg.streaming.file_producer import FileSending
from k3dreg.streaming.workers import Workers

# Bytes of contents that one trip to a worker thread moves: the trip is then below 1% of the work, and a reader who
# follows the layer hears of new bytes some hundred times a second.
_STEP = 8 * 1024 * 1024
# IBlob.read is for manifests and configs.
_LARGEST_READ = 8 * 1024 * 1024
# O_NONBLOCK: opening a pipe must not wait for somebody at its other end.
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_DIRECTORY = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


def files_here(engine: IEngineRequests, workers: Workers, docker_root: str = "", content_store: str = "") -> LocalFiles:
    """The engine's files as they are on this machine: see `SameDirectories`."""
    return LocalFiles(workers, SameDirectories(engine, docker_root=docker_root, content_store=content_store))


class LocalFiles:
    """See `IEngineFiles`.  `places` knows where they are."""

    def __init__(self, workers: Workers, places: EngineDirectories) -> None:
        self._workers = workers
        self._places = places

    async def stat(self, path: str) -> FileStat:
        """What is there."""
        here = await self._places.locate(path)
        return await self._workers.run(_stat, here)

    async def read(self, path: str, limit: int) -> bytes:
        """A small file, whole."""
        here = await self._places.locate(path)
        return await self._workers.run(_read, here, limit)

    async def blob(self, path: str, digest: Digest, size: int | None = None) -> IBlob:
        """The file as a blob; it is opened each time the blob is sent or read."""
        here = await self._places.locate(path)
        found = await self._workers.run(_size, here)
        if size is not None and size != found:
            raise ContentError(f"{digest} has {found} bytes on the engine's disk, not {size}")
        return LocalBlob(self._workers, lambda: _PlaceHandle(here), digest, found)

    async def fill(self, directory: str, sink: IContentSink, progress: Callable[[], Awaitable[None]]) -> None:
        """Contents are read in worker threads in the order in which they are wanted."""
        tree = LocalTree(await self._places.locate(directory))
        try:
            while await self._workers.run(tree.give, sink):
                await progress()
            await progress()
        finally:
            self._workers.clean_up(tree.close)

    async def close(self) -> None:
        """Nothing was done on the engine's side."""


class LocalBlob:
    """A file of the engine's as a blob.  The file is open only while it is sent or read."""

    def __init__(self, workers: Workers, open_file: Callable[[], FileHandle], digest: Digest, size: int) -> None:
        """`open_file` returns a new handle, which the blob closes; it must not block."""
        self.digest = digest
        self.size = size
        self._workers = workers
        self._open_file = open_file

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """As `FileSending.run`: a file that has become shorter makes it raise `ContentGone`."""
        handle = self._open_file()
        try:
            await FileSending(self._workers, handle, consumer).run(start, stop)
        finally:
            self._workers.clean_up(handle.close)

    async def read(self) -> bytes:
        """All of it, verified."""
        if self.size > _LARGEST_READ:
            raise ContentError(f"{self.digest} has {self.size} bytes, which is too many for a document")
        handle = self._open_file()
        try:
            data = await self._workers.run(handle.read, 0, self.size)
        finally:
            self._workers.clean_up(handle.close)
        if Digest.of(data, self.digest.algorithm) != self.digest:
            raise ContentError(f"{self.digest} does not hash to its digest on the engine's disk")
        return data


class _PlaceHandle(FileHandle):
    """A file at a place, opened at its first use."""

    def __init__(self, place: EngineDirectory) -> None:
        super().__init__()
        self._place = place

    def _open(self) -> int:
        try:
            return _open(self._place)
        except FileAbsent as error:
            raise ContentGone("a file of the engine's is not there any more") from error


class LocalTree:
    """The files of one directory.  Names come from images, which may be hostile: no symbolic link is followed."""

    def __init__(self, root: EngineDirectory) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._closed = False
        self._file: int | None = None
        # The directories on the way to the last file, outermost first: the next file is most often close by.
        self._way: list[tuple[bytes, int]] = []

    def give(self, sink: IContentSink) -> bool:
        """Give some contents; whether more are wanted.  For worker threads.  Raises as `IEngineFiles.fill`."""
        with self._lock, _errors():
            given = 0
            while sink.wanted is not None and given < _STEP:
                if self._closed:
                    raise ContentGone("the reading of a layer was cancelled")
                if self._file is None:
                    self._file = self._open(sink.wanted)
                # Not the file's own size: it is the layer that says how many bytes of it there are.
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
        """Close every file.  For worker threads: it waits for a `give` that nobody waits for any more."""
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
        """The innermost of these, each opened in the one before it, so that none can be a link to elsewhere."""
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
    """`OSError`s as our own.  Paths stay out of the texts: clients see them."""
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
    """The size of a file that can be opened."""
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
