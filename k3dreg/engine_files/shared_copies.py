"""Temporary copies of files of the engine's, for clients that want the same one at about the same time.

And for clients that want one part of a file after another: the archive API reads a file from its beginning only.
"""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from k3dreg.engine_files.scratch_files import ScratchSpool
from k3dreg.streaming.content import IByteStream
from k3dreg.streaming.workers import Workers

# Seconds for which a copy is kept that nobody uses any more.  The nodes of a cluster begin with a pull within some
# seconds of each other, and each has another layer finished first.
_LINGER = 10.0
# Bytes of all such copies together, when they are whole: they take room on the disk that is not counted as the cache's.
_MOST = 1024 * 1024 * 1024
# Seconds for which none is begun when one could not be written: each that is begun makes the engine read anew.
_NO_ROOM_FOR = 30.0


class SharedCopies:
    """Copies of whole files by their paths.  What is at a path never changes: it is named by its digest."""

    def __init__(self, workers: Workers, clock: IReactorTime, directory: str) -> None:
        """`directory` is where temporary files may be made."""
        self._workers = workers
        self._clock = clock
        self._directory = directory
        self._copies: dict[str, ScratchSpool] = {}
        # Those that nobody uses, the one that has been left for longest first.
        self._left: dict[str, IDelayedCall] = {}
        self._sizes: dict[str, int] = {}  # bytes of each, when it is whole
        # Those of which a client asked for a later part: it is likely to ask for the next one.
        self._in_parts: set[str] = set()
        self._no_room_until = 0.0

    def __len__(self) -> int:
        return len(self._copies)

    def holds(self, path: str, size: int) -> bool:
        """Whether there is a copy of this file, which has `size` bytes: the engine need not be asked about it."""
        copy = self._copies.get(path)
        return copy is not None and not copy.has_failed and self._sizes[path] == size

    def find(self, path: str, start: int) -> ScratchSpool | None:
        """Return the copy of the file, if there is one, with one more user, who wants the bytes from `start`."""
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
        """Whether it is worth the while to make one."""
        return self._clock.seconds() >= self._no_room_until

    def make(self, path: str, start: int, size: int, stream: Deferred[IByteStream]) -> ScratchSpool:
        """Make a copy of what comes, a file of `size` bytes, with one user, who wants the bytes from `start`."""
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
        """Remove those that nobody uses."""
        for path in list(self._left):
            self._forget(path)

    def _leave(self, path: str, copy: ScratchSpool) -> None:
        """Keep a copy that has no user any more, or close it.

        One that is not whole is kept for clients that ask for parts, and goes on arriving, so that the engine does
        not read the file from its beginning for each part.
        """
        if copy.lacks_room:
            self._no_room_until = self._clock.seconds() + _NO_ROOM_FOR
        if self._copies.get(path) is not copy:  # another one was made after it had failed
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
