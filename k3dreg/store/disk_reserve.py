"""Room on the disk that is kept for what must be possible when there is none: to start, and to delete."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

# Bytes.  A start writes some hundred KB (the database's index of its log, the session), a deletion some tens.
_SIZE = 1024 * 1024


class Reserve:
    """A file that is there to be removed.  Best effort: a file system may not keep the room.

    For worker threads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._held = False

    def fill(self) -> None:
        """Take the room, if there is that much.  Nothing happens when it is taken already."""
        with self._lock:
            if self._held:
                return
            try:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(descriptor, 0, _SIZE)
                finally:
                    os.close(descriptor)
                self._held = True
            except OSError:
                self._remove()

    def release(self) -> bool:
        """Give the room back, until it is filled again.  Whether there was any."""
        with self._lock:
            self._held = False
            return self._remove()

    def _remove(self) -> bool:
        with contextlib.suppress(OSError):
            self._path.unlink()
            return True
        return False
