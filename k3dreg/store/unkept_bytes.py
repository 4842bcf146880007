"""The bytes of a blob that cannot be written to the disk: in memory until its readers have them."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque

from k3dreg.oci.errors import ContentGone
from k3dreg.streaming.file_handles import FileHandle, Handle


class UnkeptBytes:
    """The bytes of a blob from offset `start` on, which are in no file, until `discard_before` drops them.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: deque[bytes] = deque()
        self._closed = False
        self._first = 0  # offset in the blob of the first piece
        self.start: int | None = None

    def begin(self, start: int) -> None:
        """Set the offset of the first byte in memory.  Call it once, before `append`."""
        with self._lock:
            self.start = self._first = start

    def append(self, data: bytes | memoryview) -> None:
        """Append a copy of `data`."""
        with self._lock:
            if not self._closed:
                self._pieces.append(bytes(data))

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; b"" at the end.  Raises `ContentGone` for dropped bytes."""
        with self._lock:
            at = offset - self._first
            if at < 0:
                raise ContentGone("the beginning of a blob that could not be kept is gone")
            for piece in self._pieces:
                if at < len(piece):
                    return piece[at : at + length]
                at -= len(piece)
        return b""

    def discard_before(self, offset: int) -> None:
        """Drop the pieces that end at `offset` or before it."""
        with self._lock:
            while self._pieces and self._first + len(self._pieces[0]) <= offset:
                self._first += len(self._pieces.popleft())

    def close(self) -> None:
        """Drop all bytes, and those of later calls of `append`."""
        with self._lock:
            self._pieces.clear()
            self._closed = True

    def covers(self, offset: int) -> bool:
        """Return whether the byte at `offset` must be read from memory, not from the file."""
        return self.start is not None and offset >= self.start


class PartlyKept(FileHandle):
    """A handle on a blob whose first part is in a staging file and whose rest is in memory."""

    def __init__(self, descriptor: int | None, rest: UnkeptBytes) -> None:
        """`descriptor` now belongs to the handle; None if no file could be created."""
        super().__init__(descriptor=descriptor)
        self._rest = rest

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`, from the file or from memory; b"" at the end.

        Raises as `FileHandle.read`, and `ContentGone` for bytes that were dropped from memory.
        """
        if self._rest.covers(offset):
            return self._rest.read(offset, length)
        return super().read(offset, self._in_file(offset, length))

    def send(self, socket: Handle, offset: int, length: int) -> int:
        """Send bytes of the file into a socket, as `FileHandle.send`.

        Raises `OSError` (EINVAL) for bytes in memory, which sendfile(2) cannot send; the caller then reads them.
        """
        if self._rest.covers(offset):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().send(socket, offset, self._in_file(offset, length))

    def close(self) -> None:
        """Refuse further reads, and drop the bytes in memory: the blob has no other handle."""
        super().close()
        self._rest.close()

    def _in_file(self, offset: int, length: int) -> int:
        start = self._rest.start
        return length if start is None else min(length, start - offset)
