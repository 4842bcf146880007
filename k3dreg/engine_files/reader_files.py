"""Read the engine's files by its archive API, through containers that never run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from twisted.internet.interfaces import IConsumer, IReactorTime

from k3dreg.docker import container_files
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.engine_files.archive_reads import ArchivedFile, ArchivedTree, drain
from k3dreg.engine_files.engine_files import LARGEST_READ, FileStat, read_verified
from k3dreg.engine_files.reader_containers import Reader
from k3dreg.engine_files.reader_pool import SIZE, ReaderPool
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    ContentError,
    ContentGone,
    EngineError,
    EngineUnavailable,
    FileAbsent,
    FilesUnreachable,
)
from k3dreg.store.arrivals import Arrival, Arrivals
from k3dreg.streaming.content import IBlob, IByteStream, IContentSink
from k3dreg.streaming.workers import Workers

# Bytes of a directory's archive that one read waits for: about what the socket's buffer holds.  The engine sends three
# chunks for each file, most of them tiny; waking up for each would cost twice as much as the rest of the work.
_LEAST = 192 * 1024
# Reader containers that one request tries.  `docker container prune` removes them one by one, and may remove each just
# before the request gets it, and then each of the new ones.
_TRIES = 4 * SIZE
# Seconds after which the reading of a file that no client reads any more is given up.  The nodes of a cluster begin a
# pull within some seconds of each other, and a client that reads a blob in parts asks for the next one.
_UNREAD = 10.0

T = TypeVar("T")


class ReaderFiles:
    """Access to the engine's files through reader containers (`IEngineFiles`).

    A blob is read once, whole, into the store, as the archive API reads a file from its beginning only.  Clients read
    it meanwhile, each at its own pace, so that a slow one does not block a container for the others.

    It creates nothing in the engine before its first use.  The owner calls `close` in the end.
    """

    def __init__(
        self,
        engine: IEngineRequests,
        workers: Workers,
        clock: IReactorTime,
        arrivals: Arrivals,
        *,
        owner: str,
        scratch: str,
        size: int = SIZE,
    ) -> None:
        """`scratch` is a directory for temporary files, and `size` the number of containers.

        `owner`: see `ReaderContainers`.
        """
        self._engine = engine
        self._workers = workers
        self._pool = ReaderPool(engine, clock, owner, size)
        self._arrivals = arrivals
        self._scratch = scratch

    async def prepare(self) -> None:
        """Create the containers now, so that the first request need not wait some 100 ms for one.

        Raises `FilesUnreachable` or `EngineUnavailable`.
        """
        await self._pool.prepare()

    async def stat(self, path: str) -> FileStat:
        """Return the kind and size of the file at `path`, from a HEAD request of about 4 ms: see `IEngineFiles`."""
        found, release = await self._request(partial(container_files.stat, self._engine), path, long=False)
        release()
        return FileStat(found.size, found.is_file, found.is_directory)

    async def read(self, path: str, limit: int) -> bytes:
        """Return the whole content of a small file, within about 4 ms: see `IEngineFiles`."""
        file = await self.open(path, long=False)
        parts = []
        try:
            while data := await file.read():
                if file.size is None or file.size > limit:
                    break
                parts.append(data)
            else:
                return b"".join(parts)
        except BaseException:
            file.close()
            raise
        file.close()
        raise ContentError(f"a file of the engine's has more than {limit} bytes")

    async def blob(self, path: str, digest: Digest, size: int | None = None) -> IBlob:
        """Return the file as a blob, which asks the engine for the content when it is sent: see `IEngineFiles`.

        The blob is verified while it is sent, and kept in the store.
        """
        known = self._arrivals.find(digest)
        if known is not None and size in (None, known.size):
            return ReaderBlob(self, path, digest, known.size)
        found = await self.stat(path)
        if not found.is_file:
            raise FileAbsent("it is not a regular file")
        if size is not None and size != found.size:
            raise ContentError(f"{digest} has {found.size} bytes on the engine's disk, not {size}")
        return ReaderBlob(self, path, digest, found.size)

    async def fill(self, directory: str, sink: IContentSink, progress: Callable[[], Awaitable[None]]) -> None:
        """Pass files of the directory's archive to `sink`: see `IEngineFiles`.

        A file that arrives before `sink` wants it is kept in a temporary file.
        """
        archive = partial(container_files.open_archive, self._engine, what="a layer's files")
        stream, release = await self._request(archive, directory, long=True)
        tree = ArchivedTree(self._scratch, sink)
        try:
            await self._feed(tree, stream, progress)
        except BaseException:
            stream.close()
            release()
            raise
        else:
            drain(stream, release)
        finally:
            self._workers.clean_up(tree.close)

    async def _feed(self, tree: ArchivedTree, stream: IByteStream, progress: Callable[[], Awaitable[None]]) -> None:
        """Read the archive until the sink wants no more files, or the archive ends."""
        while data := await stream.read(_LEAST):
            wants_more = await self._workers.run(tree.feed, data)
            if not wants_more:
                return
            await progress()
        await self._workers.run(tree.finish)

    async def close(self) -> None:
        """Remove the containers."""
        await self._pool.close()

    # -- for ReaderBlob -----------------------------------------------------------------------------

    async def open(self, path: str, *, long: bool) -> ArchivedFile:
        """Return the content of a file from its beginning.  The caller must read it to its end or close it.

        `long`: see `ReaderPool.acquire`.  Raises `FileAbsent`, `FilesUnreachable` or `EngineUnavailable`.
        """
        archive = partial(container_files.open_archive, self._engine, what="a file of the engine's")
        return ArchivedFile(*await self._request(archive, path, long=long))

    async def arrive(self, path: str, digest: Digest, size: int) -> IBlob:
        """Return a file of `size` bytes as a blob that is in the store, or arrives there.  Raises as `open`."""

        async def fill(arrival: Arrival) -> None:
            file = await self.open(path, long=True)
            try:
                await _copy(file, size, arrival)
            except BaseException:
                file.close()
                raise

        return await self._arrivals.open(digest, fill)

    # -- requests -----------------------------------------------------------------------------------

    async def _request(
        self, ask: Callable[[str, str], Awaitable[T]], path: str, *, long: bool
    ) -> tuple[T, Callable[[], None]]:
        """Call `ask` with a container and the path in it; return the result, and a function that releases the reader.

        Raises `FileAbsent`, `FilesUnreachable` or `EngineUnavailable`.
        """
        for _ in range(_TRIES):
            reader = await self._pool.acquire(long=long)
            try:
                result = await self._ask(ask, reader, path)
            except BaseException:
                self._pool.release(reader, long=long)
                raise
            if result is not None:
                return result, partial(self._pool.release, reader, long=long)
            # The container was removed from outside of k3dreg: try another one.
            self._pool.discard(reader)
            self._pool.release(reader, long=long)
        raise FilesUnreachable("k3dreg's reader containers vanish as soon as Docker has created them")

    async def _ask(self, ask: Callable[[str, str], Awaitable[T]], reader: Reader, path: str) -> T | None:
        """Return the result of `ask`; None if the container was removed."""
        inside = reader.inside(path)
        if inside is None:
            raise FileAbsent("the engine has no such file in the directories that k3dreg knows")
        try:
            return await ask(reader.id, inside)
        except EngineUnavailable:
            raise
        except (EngineError, FileAbsent) as error:
            # A 404 means that the file or the container is missing.  While a container is being removed, Docker may
            # answer with another error, such as "RWLayer of container ... is unexpectedly nil".
            if await self._pool.has_lost(reader):
                return None
            if isinstance(error, FileAbsent):
                raise
            raise FilesUnreachable(f"Docker does not let its files be read: {error}") from error


async def _copy(file: ArchivedFile, size: int, arrival: Arrival) -> None:
    """Write the file, which should have `size` bytes.  Give it up when no client has read it for `_UNREAD` seconds."""
    while arrival.unread_for <= _UNREAD:
        if arrival.blob is None:
            await arrival.begin(size)
        data = await file.read()
        if not data:
            return
        await arrival.write(data)
    raise ContentGone("no client reads it any more")


class ReaderBlob:
    """A file of the engine's host as a blob, which begins to arrive in the store when it is sent."""

    def __init__(self, files: ReaderFiles, path: str, digest: Digest, size: int) -> None:
        self.digest = digest
        self.size = size
        self._files = files
        self._path = path

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Send the bytes from `start` up to, not including, `stop` to `consumer`, as `IBlob` says.

        Raises as `ReaderFiles.open` and `ArrivingBlob.send`.
        """
        if start < stop:
            blob = await self._files.arrive(self._path, self.digest, self.size)
            await blob.send(consumer, start, stop)

    async def read(self) -> bytes:
        """Return the whole content.  Raises as `read_verified`."""
        return await read_verified(self.digest, self.size, lambda: self._files.read(self._path, LARGEST_READ))
