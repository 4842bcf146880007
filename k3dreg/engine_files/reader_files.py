"""The engine's files over nothing but its API: read through containers that never run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker import container_files
from k3dreg.docker.interfaces import IEngineRequests
from k3dreg.engine_files.archive_reads import ArchivedFile, ArchivedTree, drain
from k3dreg.engine_files.engine_files import FileStat
from k3dreg.engine_files.file_blob import PATIENCE, ReaderBlob, Way
from k3dreg.engine_files.reader_containers import Reader
from k3dreg.engine_files.reader_pool import SIZE, ReaderPool
from k3dreg.engine_files.scratch_files import ScratchSpool
from k3dreg.engine_files.shared_copies import SharedCopies
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, EngineError, EngineUnavailable, FileAbsent, FilesUnreachable
from k3dreg.streaming.content import IBlob, IByteStream, IContentSink
from k3dreg.streaming.workers import Workers

# Bytes that are waited for: about what the socket holds.  The engine sends three chunks for each file, most of them
# tiny; to be woken for each would cost twice as much as all the rest.
_LEAST = 192 * 1024
# Readers that are asked for one thing before it is given up: whoever removes the containers (`docker container prune`)
# does so one by one, and each may be the next that is lent; so may those that are made meanwhile.
_TRIES = 4 * SIZE

T = TypeVar("T")


class ReaderFiles:
    """See `IEngineFiles`.  Nothing is done in the engine before the first use."""

    def __init__(
        self,
        engine: IEngineRequests,
        workers: Workers,
        clock: IReactorTime,
        *,
        owner: str,
        scratch: str,
        size: int = SIZE,
        patience: float = PATIENCE,
    ) -> None:
        """`owner` tells this k3dreg's containers from others' (letters and digits); `scratch` is a directory for
        temporary files; `size` how many containers; `patience`: see `ReaderBlob`.
        """
        self._engine = engine
        self._workers = workers
        self._pool = ReaderPool(engine, clock, owner, size)
        self._scratch = scratch
        self._patience = patience
        self.clock = clock
        # Files that are being sent straight from the engine, and those of which there is a temporary copy.
        self.sending: dict[str, Way] = {}
        self.copies = SharedCopies(workers, clock, scratch)

    async def prepare(self) -> None:
        """Make the containers now, so that the first who asks need not wait some 100 ms for one.

        Raises `FilesUnreachable`, `EngineUnavailable`.
        """
        await self._pool.prepare()

    async def stat(self, path: str) -> FileStat:
        """One HEAD: about 4 ms."""
        found, release = await self._request(partial(container_files.stat, self._engine), path, long=False)
        release()
        return FileStat(found.size, found.is_file, found.is_directory)

    async def read(self, path: str, limit: int) -> bytes:
        """A small file, whole: about 4 ms."""
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
        """The file as a blob; it is asked for only when the blob is sent."""
        if size is not None and self.copies.holds(path, size):
            return ReaderBlob(self, path, digest, size, self._patience)
        found = await self.stat(path)
        if not found.is_file:
            raise FileAbsent("it is not a regular file")
        if size is not None and size != found.size:
            raise ContentError(f"{digest} has {found.size} bytes on the engine's disk, not {size}")
        return ReaderBlob(self, path, digest, found.size, self._patience)

    async def fill(self, directory: str, sink: IContentSink, progress: Callable[[], Awaitable[None]]) -> None:
        """One archive of the whole directory; what comes before it is wanted waits in a temporary file."""
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
        """Until the sink wants no more, or the archive ends."""
        while data := await stream.read(_LEAST):
            wants_more = await self._workers.run(tree.feed, data)
            if not wants_more:
                return
            await progress()
        await self._workers.run(tree.finish)

    async def close(self) -> None:
        """Remove the containers, and what is kept of files."""
        self.copies.close()
        await self._pool.close()

    # -- for ReaderBlob -----------------------------------------------------------------------------

    async def open(self, path: str, *, long: bool) -> ArchivedFile:
        """The content of a file from its beginning; the caller reads it to its end or closes it."""
        archive = partial(container_files.open_archive, self._engine, what="a file of the engine's")
        return ArchivedFile(*await self._request(archive, path, long=long))

    def copy(self, path: str, start: int, size: int) -> ScratchSpool | None:
        """Return a temporary copy of a file of `size` bytes, for all who ask for it meanwhile.  To be left.

        `start` is where in it the client begins.  None if there is no room for a copy.
        """
        found = self.copies.find(path, start)
        if found is not None or not self.copies.have_room:
            return found
        return self.copies.make(path, start, size, Deferred.fromCoroutine(self.open(path, long=True)))

    def spool(self, start: int) -> ScratchSpool:
        """A temporary file that is nobody else's business."""
        return ScratchSpool(self._workers, self._scratch, start)

    # -- requests -----------------------------------------------------------------------------------

    async def _request(
        self, ask: Callable[[str, str], Awaitable[T]], path: str, *, long: bool
    ) -> tuple[T, Callable[[], None]]:
        """Call `ask` with a container and with the path in it; return its result, and what gives the reader back.

        Raises `FileAbsent`, `FilesUnreachable`, `EngineUnavailable`.
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
            # Somebody has removed the container: once more, with another one.
            self._pool.discard(reader)
            self._pool.release(reader, long=long)
        raise FilesUnreachable("k3dreg's reader containers vanish as soon as Docker has created them")

    async def _ask(self, ask: Callable[[str, str], Awaitable[T]], reader: Reader, path: str) -> T | None:
        """Return the result of `ask`; None if there is no such container any more."""
        inside = reader.inside(path)
        if inside is None:
            raise FileAbsent("the engine has no such file in the directories that k3dreg knows")
        try:
            return await ask(reader.id, inside)
        except EngineUnavailable:
            raise
        except (EngineError, FileAbsent) as error:
            # The file or the container is missing.  And while a container is being removed, Docker's answer may be an
            # error of its own ("RWLayer of container ... is unexpectedly nil").
            if await self._pool.has_lost(reader):
                return None
            if isinstance(error, FileAbsent):
                raise
            raise FilesUnreachable(f"Docker does not let its files be read: {error}") from error
