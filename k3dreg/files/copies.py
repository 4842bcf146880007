"""Temporary copies of files of the engine's, for those who want the same one at about the same time."""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from k3dreg.files.scratch import Spool
from k3dreg.interfaces import IByteStream
from k3dreg.streaming.workers import Workers

# Seconds for which a copy is kept that nobody uses any more.  The nodes of a cluster begin with a pull within some
# seconds of each other, and each has another layer finished first.
_LINGER = 10.0
# Bytes of all such copies together: they take room on the disk that is not counted as the cache's.
_MOST = 1024 * 1024 * 1024
# Seconds for which none is begun when one could not be written: each that is begun makes the engine read anew.
_NO_ROOM_FOR = 30.0


class Copies:
    """Copies of files by their paths.  What is at a path never changes: it is named by its digest."""

    def __init__(self, workers: Workers, clock: IReactorTime, directory: str) -> None:
        """`directory` is where temporary files may be made."""
        self._workers = workers
        self._clock = clock
        self._directory = directory
        self._copies: dict[str, Spool] = {}
        # Those that nobody uses, the one that has been left for longest first.
        self._left: dict[str, IDelayedCall] = {}
        self._no_room_until = 0.0

    def __len__(self) -> int:
        return len(self._copies)

    def find(self, path: str, start: int) -> Spool | None:
        """The copy that has the file from `start`, if there is one, with one more user."""
        copy = self._copies.get(path)
        if copy is None or copy.start > start or copy.has_failed:
            return None
        if path in self._left:
            self._left.pop(path).cancel()
        return copy.join()

    @property
    def have_room(self) -> bool:
        """Whether it is worth the while to make one."""
        return self._clock.seconds() >= self._no_room_until

    def make(self, path: str, start: int, stream: Deferred[IByteStream]) -> Spool:
        """A new copy of what comes, which is the file from `start`, with one user."""
        if path in self._left:
            self._forget(path)
        copy = Spool(self._workers, self._directory, start, partial(self._leave, path)).join()
        self._copies[path] = copy
        copy.fill(stream)
        return copy

    def close(self) -> None:
        """Remove those that nobody uses."""
        for path in list(self._left):
            self._forget(path)

    def _leave(self, path: str, copy: Spool) -> None:
        if copy.lacks_room:
            self._no_room_until = self._clock.seconds() + _NO_ROOM_FOR
        if self._copies.get(path) is not copy:  # there is one that has more of the file
            copy.close()
            return
        self._left[path] = self._clock.callLater(_LINGER, self._forget, path)
        if not copy.is_whole:
            self._forget(path)
        while sum(self._copies[each].size for each in self._left) > _MOST:
            self._forget(next(iter(self._left)))

    def _forget(self, path: str) -> None:
        timer = self._left.pop(path)
        if timer.active():
            timer.cancel()
        self._copies.pop(path).close()
