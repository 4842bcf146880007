"""File descriptors that several threads use at once."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from k3dreg.oci.errors import ContentGone, TooManyFiles

# EMFILE: the limit of the process is reached.  ENFILE: that of the machine.
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})
# Seconds after which a client may retry.  Descriptors become free soon, because connections end all the time.
_AGAIN = 5.0


def check_descriptors() -> None:
    """Raise `TooManyFiles` if no more files can be opened now."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise_if_too_many(error)


def raise_if_too_many(error: OSError) -> None:
    """Raise `TooManyFiles` if `error` says that no more files can be opened."""
    if error.errno in _NO_DESCRIPTOR:
        raise TooManyFiles(
            "k3dreg has as many files open as it may have",
            after=_AGAIN,
            advice="ask again; the limit is LimitNOFILE of a service, --ulimit nofile of a container",
        ) from error


class Handle:
    """A file descriptor that several threads use at once, and that its owner may close at any time.

    The kernel reuses the number of a closed descriptor at once, so a thread that still used it would read another file
    or write to another client's connection.  So `close` does not wait for the uses under way: the last of them closes
    the descriptor.
    """

    def __init__(self, descriptor: int | None) -> None:
        """`descriptor` now belongs to the handle; with None, the handle opens one at its first use."""
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._using = 0
        self._closed = False

    @contextmanager
    def use(self) -> Iterator[int]:
        """Return the descriptor, which stays open until the `with` block ends.

        Raises `ContentGone` when the handle is closed or there is nothing to open, and `OSError`.
        """
        with self._lock:
            if self._closed:
                raise ContentGone("a file was closed before it was read")
            if self._descriptor is None:
                self._descriptor = self._open()
            descriptor = self._descriptor
            self._using += 1
        try:
            yield descriptor
        finally:
            with self._lock:
                self._using -= 1
            self._close_if_last()

    def close(self) -> None:
        """Refuse further uses, and close the descriptor when the uses under way have ended.

        Safe at any time, in any thread, any number of times.  Prefer a worker thread: the last close of a removed
        file frees its disk blocks, which takes time.
        """
        with self._lock:
            self._closed = True
        self._close_if_last()

    def _open(self) -> int:
        raise ContentGone("a descriptor was not there")

    def _close_if_last(self) -> None:
        with self._lock:
            if not self._closed or self._using or self._descriptor is None:
                return
            descriptor, self._descriptor = self._descriptor, None
        os.close(descriptor)


class FileHandle(Handle):
    """A file that is read at offsets.  Call its methods in worker threads."""

    def __init__(self, path: str = "", *, descriptor: int | None = None) -> None:
        """Give either a `path`, opened at the first read, or a `descriptor`, which then belongs to the handle."""
        super().__init__(descriptor)
        self._path = path

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; b"" at the end of the file.

        Raises `ContentGone` when the file does not exist or the handle is closed, and `OSError`.
        """
        with self.use() as descriptor:
            return os.pread(descriptor, length, offset)

    def send(self, socket: Handle, offset: int, length: int) -> int:
        """Send up to `length` bytes from `offset` into a non-blocking socket; return how many it took, 0 if it is full.

        Raises `ContentGone` as `read`, and when the file has no more bytes; and `OSError`, of the file or the socket.
        """
        with self.use() as descriptor, socket.use() as target:
            try:
                sent = os.sendfile(target, descriptor, offset, length)
            except BlockingIOError:
                return 0
        if not sent:
            raise ContentGone(f"content ended at byte {offset}, with {length} bytes still expected")
        return sent

    def size(self) -> int:
        """Return the size of the file in bytes.  Raises as `read`."""
        with self.use() as descriptor:
            return os.fstat(descriptor).st_size

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ContentGone("a file is not there any more") from None
