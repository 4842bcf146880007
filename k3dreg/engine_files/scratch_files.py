"""Temporary files for content that the engine sends before a client takes it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer

from k3dreg.oci.errors import ContentError, ContentGone, K3dregError, StoreError
from k3dreg.store.durable_files import storage_errors
from k3dreg.streaming.content import IByteStream
from k3dreg.streaming.file_handles import FileHandle
from k3dreg.streaming.file_producer import FileSending
from k3dreg.streaming.workers import Workers

# Bytes after which waiting clients are told of new ones.  Each client then costs a call in a worker thread, and eight
# clients that follow the engine compete with it for processors.  4 MiB cost a fifth more, 32 MiB did not cost less.
_STEP = 16 * 1024 * 1024


class NoCopy(Exception):
    """A temporary copy cannot be written any further, because the disk is full or fails.

    The consumer has the bytes up to, not including, `position`.  The caller can send the rest in another way.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class ScratchFile(FileHandle):
    """A file without a name, created at its first use and deleted by `close`.

    `write` and `read` are for worker threads.  They raise `StoreError` when the file cannot be created.
    """

    def __init__(self, directory: str) -> None:
        """`directory` is where the file is created."""
        super().__init__()
        self._directory = directory
        self.written = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`.  Raises `StoreError`, and `ContentGone` when the file is closed."""
        with storage_errors("writing a temporary file"), self.use() as descriptor:
            view = memoryview(data)
            while view:
                count = os.pwrite(descriptor, view, self.written)
                self.written += count
                view = view[count:]

    def _open(self) -> int:
        with (
            storage_errors("making a temporary file"),
            tempfile.TemporaryFile(dir=self._directory, buffering=0) as file,
        ):
            return os.dup(file.fileno())


class ScratchSpool:
    """A stream, or its rest, that is written to a temporary file at its own pace and sent to clients at theirs.

    The spool counts its users: each calls `join` once and `leave` once.
    """

    def __init__(
        self, workers: Workers, directory: str, start: int, left: Callable[[ScratchSpool], None] | None = None
    ) -> None:
        """`start` is the offset, in the engine's file, of the stream's first byte.

        `left` is called when the last user has left, and must `close` the spool then or later.  Without `left` the
        spool is closed then.
        """
        self.start = start
        self._workers = workers
        self._file = ScratchFile(directory)
        self._left = left or ScratchSpool.close
        self._stop = start  # offset of the first byte that has not arrived
        self._told = start  # `_stop` when waiting clients were last woken
        self._users = 0
        self._whole = False
        self._error: K3dregError | None = None
        self._waiting: list[Deferred[None]] = []
        self._filling: Deferred[None] | None = None

    def join(self) -> ScratchSpool:
        """Count one more user, who must call `leave`, and return this spool."""
        self._users += 1
        return self

    def leave(self) -> None:
        """Count one user less."""
        self._users -= 1
        if self._users == 0:
            self._left(self)

    def close(self) -> None:
        """Delete the file, and stop reading the stream."""
        if self._filling is not None:
            self._filling.cancel()
        self._workers.clean_up(self._file.close)

    @property
    def is_whole(self) -> bool:
        """Whether the whole stream has arrived."""
        return self._whole

    @property
    def has_failed(self) -> bool:
        """Whether the rest of the stream will never arrive."""
        return self._error is not None

    @property
    def lacks_room(self) -> bool:
        """Whether the spool has failed because the file cannot be written, and not because the stream broke."""
        return isinstance(self._error, StoreError)

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self._stop - self.start

    def fill(self, stream: Deferred[IByteStream]) -> None:
        """Start to write the whole stream to the file.  The stream is closed in the end."""
        self._filling = Deferred.fromCoroutine(self._fill(stream))

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Send the bytes from `start` up to, not including, `stop`, as they arrive.  Offsets are of the engine's file.

        Raises as `FileSending.run`, `ContentGone` if the stream broke or ends before `stop`, and `NoCopy` if the file
        cannot be written.
        """
        sending = FileSending(self._workers, self._file, consumer, self._available)
        try:
            await sending.run(start - self.start, stop - self.start)
        except StoreError as error:
            raise NoCopy(str(error), self.start + sending.position) from error

    def _available(self, offset: int) -> Deferred[int]:
        """Fire with the end of what has arrived, once that is beyond `offset`: see `FileSending`.

        Both are offsets in the temporary file.
        """
        return Deferred.fromCoroutine(self._arrived_beyond(offset))

    async def _arrived_beyond(self, offset: int) -> int:
        while offset >= self.size:
            if self._error is not None:
                # A new exception for each client: raising one object several times would mix their tracebacks.
                kind = StoreError if isinstance(self._error, StoreError) else ContentGone
                raise kind(str(self._error))
            if self._whole:
                raise ContentGone("content ended too soon")
            waiter: Deferred[None] = Deferred(lambda gone: self._waiting.remove(gone))
            self._waiting.append(waiter)
            await waiter
        return self.size

    async def _fill(self, opening: Deferred[IByteStream]) -> None:
        stream: IByteStream | None = None
        try:
            stream = await opening
            while data := await stream.read():
                await self._workers.run(self._file.write, data)
                self._stop += len(data)
                if self._stop - self._told >= _STEP:
                    self._wake()
            self._whole = True
        except CancelledError:
            self._error = ContentGone("the reading was cancelled")
        except K3dregError as error:
            self._error = error
        except Exception:
            self._error = ContentError("the reading failed inside k3dreg")
            raise
        finally:
            if stream is not None:
                stream.close()
            self._filling = None
            self._wake()

    def _wake(self) -> None:
        self._told = self._stop
        woken, self._waiting = self._waiting, []
        for waiter in woken:
            if not waiter.called:
                waiter.callback(None)
