"""Reserved room on the disk, so that k3dreg can start and delete content even when the disk is full."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

# Bytes.  A start writes some hundred KB (the index of the database's log, the session), a deletion some tens of KB.
_SIZE = 1024 * 1024


class Reserve:
    """A file that is removed to make room on a full disk.

    Best effort: not every file system keeps the room for the file.  Call its methods in worker threads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._held = False

    def fill(self) -> None:
        """Reserve the room, if the disk has as much.  Does nothing if it is reserved already."""
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
        """Free the room until the next `fill`; return whether any was reserved."""
        with self._lock:
            self._held = False
            return self._remove()

    def _remove(self) -> bool:
        with contextlib.suppress(OSError):
            self._path.unlink()
            return True
        return False
