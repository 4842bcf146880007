"""Descriptors that several threads use at once."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from k3dreg.oci.errors import ContentGone, TooManyFiles

# The process, or the whole machine, has as many files open as it may have.
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})
# Seconds after which a client may ask again: connections end all the time.
_AGAIN = 5.0


def check_descriptors() -> None:
    """Raise `TooManyFiles` when no file can be opened now."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise_if_too_many(error)


def raise_if_too_many(error: OSError) -> None:
    """Raise `TooManyFiles` when that is why a file could not be opened."""
    if error.errno in _NO_DESCRIPTOR:
        raise TooManyFiles(
            "k3dreg has as many files open as it may have",
            after=_AGAIN,
            advice="ask again; the limit is LimitNOFILE of a service, --ulimit nofile of a container",
        ) from error


class Handle:
    """A descriptor that is used in several threads at once, and closed whenever its owner likes.

    A descriptor that is closed while a thread is about to use it may be another file, or another client's connection,
    by then.  So the close waits for the uses that are under way: whoever comes last closes the descriptor, and nobody
    blocks.
    """

    def __init__(self, descriptor: int | None) -> None:
        """The `descriptor` belongs to the handle from now on; None if it is opened at its first use."""
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._using = 0
        self._closed = False

    @contextmanager
    def use(self) -> Iterator[int]:
        """The descriptor, open for as long as the `with` lasts.

        Raises `ContentGone` when the handle is closed, or there is nothing to open, and `OSError`.
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
        """No more uses.  Safe at any time, in any thread, any number of times.

        It may have to give the disk blocks of a removed file back, so leave it to a worker thread if you can.
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
    """A file that is read at offsets.  What it does is for worker threads."""

    def __init__(self, path: str = "", *, descriptor: int | None = None) -> None:
        """Either a `path`, opened at the first read, or a `descriptor`, which belongs to the handle from now on."""
        super().__init__(descriptor)
        self._path = path

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; b"" at the end of the file.

        Raises `ContentGone` when the file is not there or the handle is closed, and `OSError`.
        """
        with self.use() as descriptor:
            return os.pread(descriptor, length, offset)

    def send(self, socket: Handle, offset: int, length: int) -> int:
        """Put up to `length` bytes from `offset` into a non-blocking socket; how many it took.

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
        """Bytes in the file.  Raises as `read` does."""
        with self.use() as descriptor:
            return os.fstat(descriptor).st_size

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ContentGone("a file is not there any more") from None
