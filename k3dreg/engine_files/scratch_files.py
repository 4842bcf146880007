"""Temporary files: for what the engine gives before anybody takes it."""

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

# Bytes after which those who wait for more are told: each of them costs a trip to a worker thread then, and eight who
# follow the engine want the processors that it needs.  With 4 MiB they cost a fifth more, with 32 MiB no less.
_STEP = 16 * 1024 * 1024


class NoCopy(Exception):
    """A temporary copy cannot be written any further: the disk is full, or fails.

    Whoever was sent it has the bytes up to, not including, `position`, and can have the rest in another way.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class ScratchFile(FileHandle):
    """A file without a name, which is made when it is first used, and gone when it is closed.

    `write` and `read` are for worker threads, and raise `StoreError` when it cannot be made.
    """

    def __init__(self, directory: str) -> None:
        """`directory` is where it takes its room."""
        super().__init__()
        self._directory = directory
        self.written = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append.  Raises `StoreError`; `ContentGone` when it is closed."""
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
    """The rest of a stream, taken at the stream's pace and read at others', by several at once.

    It counts its users: `join` and `leave`.
    """

    def __init__(
        self, workers: Workers, directory: str, start: int, left: Callable[[ScratchSpool], None] | None = None
    ) -> None:
        """`start`: where in its file the stream begins.

        `left` is called when the last user has left, and is to `close` it then, or later; None: it is closed then.
        """
        self.start = start
        self._workers = workers
        self._file = ScratchFile(directory)
        self._left = left or ScratchSpool.close
        self._stop = start  # what has arrived reaches to here
        self._told = start  # and what those who wait have been told of
        self._users = 0
        self._whole = False
        self._error: K3dregError | None = None
        self._waiting: list[Deferred[None]] = []
        self._filling: Deferred[None] | None = None

    def join(self) -> ScratchSpool:
        """One more user."""
        self._users += 1
        return self

    def leave(self) -> None:
        """One user less."""
        self._users -= 1
        if self._users == 0:
            self._left(self)

    def close(self) -> None:
        """The file is gone, and no more is taken from the stream."""
        if self._filling is not None:
            self._filling.cancel()
        self._workers.clean_up(self._file.close)

    @property
    def is_whole(self) -> bool:
        """Whether the stream has ended as it should, and all of it is here."""
        return self._whole

    @property
    def has_failed(self) -> bool:
        """Whether the rest will never be here."""
        return self._error is not None

    @property
    def lacks_room(self) -> bool:
        """Whether that is because it cannot be written, and not because nothing more comes."""
        return isinstance(self._error, StoreError)

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return self._stop - self.start

    def fill(self, stream: Deferred[IByteStream]) -> None:
        """Begin to take everything from the stream, which is closed in the end."""
        self._filling = Deferred.fromCoroutine(self._fill(stream))

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Send the bytes from `start` up to, not including, `stop`, as they come.

        Raises as `FileSending.run`; `ContentGone` if the stream broke, or ends before `stop`; `NoCopy`.
        """
        sending = FileSending(self._workers, self._file, consumer, self._available)
        try:
            await sending.run(start - self.start, stop - self.start)
        except StoreError as error:
            raise NoCopy(str(error), self.start + sending.position) from error

    def _available(self, offset: int) -> Deferred[int]:
        """For `FileSending`, which counts from the beginning of the temporary file."""
        return Deferred.fromCoroutine(self._arrived_beyond(offset))

    async def _arrived_beyond(self, offset: int) -> int:
        while offset >= self.size:
            if self._error is not None:
                # One for each: an exception collects the frames it was raised through.
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
