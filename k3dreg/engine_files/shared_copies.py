"""Temporary copies of the engine's files, for clients that ask for the same file at about the same time.

They are also for clients that ask for one part of a file after another: the archive API reads a file from its beginning
only.
"""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from k3dreg.engine_files.scratch_files import ScratchSpool
from k3dreg.streaming.content import IByteStream
from k3dreg.streaming.workers import Workers

# Seconds for which a copy without users is kept.  The nodes of a cluster begin a pull within some seconds of each
# other, and finish its layers in different orders.
_LINGER = 10.0
# Bytes of all copies without users, counted as if they were complete.  `--cache-size` does not limit them.
_MOST = 1024 * 1024 * 1024
# Seconds after a failed write for which no copy is started: each would make the engine read a file again, in vain.
_NO_ROOM_FOR = 30.0


class SharedCopies:
    """Temporary copies of whole files, by path.  A file's content never changes: its path contains its digest.

    The owner calls `close` in the end.
    """

    def __init__(self, workers: Workers, clock: IReactorTime, directory: str) -> None:
        """`directory` is where temporary files are created."""
        self._workers = workers
        self._clock = clock
        self._directory = directory
        self._copies: dict[str, ScratchSpool] = {}
        # The copies without users, in the order in which they lost their last user.
        self._left: dict[str, IDelayedCall] = {}
        self._sizes: dict[str, int] = {}  # bytes of each complete file
        # Files of which a client asked for a part after the first byte: it is likely to ask for the next part, too.
        self._in_parts: set[str] = set()
        self._no_room_until = 0.0

    def __len__(self) -> int:
        return len(self._copies)

    def holds(self, path: str, size: int) -> bool:
        """Return whether there is a copy of this file of `size` bytes, so that the engine need not be asked for it."""
        copy = self._copies.get(path)
        return copy is not None and not copy.has_failed and self._sizes[path] == size

    def find(self, path: str, start: int) -> ScratchSpool | None:
        """Return the copy of the file, which the caller must `leave`, or None if there is none.

        `start` is the offset of the first byte that the caller's client wants.
        """
        copy = self._copies.get(path)
        if copy is None or copy.has_failed:
            return None
        if path in self._left:
            self._left.pop(path).cancel()
        if start:
            self._in_parts.add(path)
        return copy.join()

    @property
    def have_room(self) -> bool:
        """Whether a new copy can be expected to find room on the disk."""
        return self._clock.seconds() >= self._no_room_until

    def make(self, path: str, start: int, size: int, stream: Deferred[IByteStream]) -> ScratchSpool:
        """Start a copy of a file of `size` bytes that `stream` brings, and return it.  The caller must `leave` it.

        `start` is the offset of the first byte that the caller's client wants.
        """
        if path in self._left:
            self._forget(path)
        copy = ScratchSpool(self._workers, self._directory, 0, partial(self._leave, path)).join()
        self._copies[path] = copy
        self._sizes[path] = size
        if start:
            self._in_parts.add(path)
        copy.fill(stream)
        return copy

    def close(self) -> None:
        """Remove the copies without users."""
        for path in list(self._left):
            self._forget(path)

    def _leave(self, path: str, copy: ScratchSpool) -> None:
        """Keep a copy without users for some seconds, or close it.

        An incomplete copy is kept, and goes on arriving, if a client has asked for a later part of it.  Otherwise the
        engine would read the file from its beginning for each part.
        """
        if copy.lacks_room:
            self._no_room_until = self._clock.seconds() + _NO_ROOM_FOR
        if self._copies.get(path) is not copy:  # it had failed, and was replaced by a new one
            copy.close()
            return
        self._left[path] = self._clock.callLater(_LINGER, self._forget, path)
        if copy.has_failed or not (copy.is_whole or path in self._in_parts):
            self._forget(path)
        while sum(self._sizes[each] for each in self._left) > _MOST:
            self._forget(next(iter(self._left)))

    def _forget(self, path: str) -> None:
        timer = self._left.pop(path)
        if timer.active():
            timer.cancel()
        self._in_parts.discard(path)
        del self._sizes[path]
        self._copies.pop(path).close()
