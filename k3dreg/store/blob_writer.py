"""Write blobs into the store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import DigestMismatch, StoreError, StoreFull
from k3dreg.store.blob_files import BlobFiles
from k3dreg.store.durable_files import NO_ROOM, storage_errors
from k3dreg.store.unkept_bytes import PartlyKept, UnkeptBytes
from k3dreg.streaming.content import IFileHandle
from k3dreg.streaming.file_handles import FileHandle

# Bytes evicted at once when the disk is full: enough for most layers, so that not every write has to evict.
_ROOM = 256 * 1024 * 1024
# Bytes of a durable blob after which the kernel is asked to start writing them to the disk.
_PUSH_OUT = 8 * 1024 * 1024


class BlobWriter:
    """Writes and hashes a staging file; `commit` renames the file to its digest.  Implements `IPassingWriter`.

    Call its methods in worker threads.  They wait for each other, so a caller that was cancelled during a `write` may
    have `abort` called at once.  The caller ends a writer by `commit` or `abort`.
    """

    def __init__(
        self,
        files: BlobFiles,
        algorithm: str,
        durable: bool,
        committed: Callable[[Digest], None],
        rest: UnkeptBytes | None = None,
    ) -> None:
        """Create the staging file.  Raises `StoreError`.

        `durable`: once it is committed, the blob survives a power failure.  `committed` is called in the thread of the
        commit with the digest, which is held in the index; the callee must release it.  `rest`, if given, takes the
        bytes that cannot be written to the disk: `unkept` then has the error, and no method raises `StoreError` for it.
        """
        self._descriptor: int | None = None
        self._rest = rest
        self._ended = False
        self.unkept: StoreError | None = None
        self.written = 0
        self._pushed_out = 0
        self._files = files
        self._algorithm = algorithm
        self._durable = durable
        self._committed = committed
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        self._lock = threading.Lock()
        self._path = files.staging_path()
        try:
            with storage_errors("beginning a blob"):
                self._descriptor = _create(self._path)
        except StoreError as error:
            self._do_not_keep(error)

    def write(self, data: bytes | memoryview) -> None:
        """Append and hash `data`.  When the disk is full, evict other blobs to make room.

        Raises `StoreFull` when that does not help, or `StoreError`; the writer is then aborted.
        """
        with self._lock:
            self._check_not_ended()
            self._hash.update(data)
            left = memoryview(data)
            while left:
                count = self._write_some(left)
                self.written += count
                left = left[count:]
            if self._durable and self._descriptor is not None and self.written - self._pushed_out >= _PUSH_OUT:
                # Make the kernel start writing to the disk now; otherwise the fsync of `commit` waits for all of it.
                # POSIX_FADV_DONTNEED starts writing dirty pages, and drops only pages that are on the disk already.
                os.posix_fadvise(
                    self._descriptor, self._pushed_out, self.written - self._pushed_out, os.POSIX_FADV_DONTNEED
                )
                self._pushed_out = self.written

    def open_reader(self) -> IFileHandle:
        """Return a handle on the bytes written so far and later; it still reads the blob after `commit`.

        The caller closes it.  Raises `StoreError`.
        """
        with self._lock, storage_errors("reading a blob that is being written"):
            self._check_not_ended()
            descriptor = None if self._descriptor is None else os.dup(self._descriptor)
            return FileHandle(descriptor=descriptor) if self._rest is None else PartlyKept(descriptor, self._rest)

    def discard_before(self, offset: int) -> None:
        """Drop the bytes before `offset` that are in memory, because no reader needs them any more."""
        if self._rest is not None:
            self._rest.discard_before(offset)

    def commit(self, digest: Digest | None = None, size: int | None = None) -> Digest:
        """Verify the blob, make it visible, and return its digest.  The staging file is removed in any case.

        Raises `DigestMismatch`, `StoreFull` or `StoreError`; the blob is then not visible.
        """
        with self._lock:
            self._check_not_ended()
            try:
                actual = Digest.parse(f"{self._algorithm}:{self._hash.hexdigest()}")
                if size is not None and size != self.written:
                    raise DigestMismatch(f"{digest or actual} has {self.written} bytes, not {size}")
                if digest is not None and digest != actual:
                    raise DigestMismatch(f"{self.written} bytes that should be {digest} are {actual}")
                if self._descriptor is not None:
                    self._keep(self._descriptor, actual)
            finally:
                self._close()
        if self.unkept is None:
            self._files.evict()
            self._committed(actual)
        return actual

    def abort(self) -> None:
        """Remove the staging file, after a write that is under way.  Safe any number of times, after `commit` too."""
        with self._lock:
            self._close()

    def _keep(self, descriptor: int, digest: Digest) -> None:
        try:
            if self._durable:
                with storage_errors("syncing a blob"):
                    os.fsync(descriptor)
            # Held before it is visible, because another thread's commit may be evicting at this moment.
            self._files.index.hold([digest])
            try:
                self._place(digest)
            except BaseException:
                self._files.index.release([digest])
                raise
        except StoreError as error:
            self._do_not_keep(error)

    def _place(self, digest: Digest) -> None:
        try:
            self._files.place(self._path, digest, self.written, durable=self._durable)
        except StoreFull:  # a full disk may lack room even for the directory
            if not self._files.evict(_ROOM):
                raise
            self._files.place(self._path, digest, self.written, durable=self._durable)

    def _write_some(self, data: memoryview) -> int:
        """Write some of `data` and return how many bytes; 0 after the writer has switched to memory."""
        if self._descriptor is None:
            assert self._rest is not None
            self._rest.append(data)
            return len(data)
        try:
            with storage_errors("writing a blob"):
                return self._write_to_disk(self._descriptor, data)
        except StoreError as error:
            self._do_not_keep(error)
            return 0

    def _write_to_disk(self, descriptor: int, data: memoryview) -> int:
        while True:
            try:
                return _append(descriptor, data)
            except OSError as error:
                # The loop ends, because `evict` returns 0 when no blob is left that may be evicted.
                if error.errno not in NO_ROOM or not self._files.evict(max(_ROOM, len(data))):
                    raise

    def _do_not_keep(self, error: StoreError) -> None:
        """Continue in memory, without the file.  Without `rest`, abort the writer and raise `error`."""
        if self._rest is None:
            self._close()
            raise error
        self._remove_file()
        self.unkept = error
        self._rest.begin(self.written)

    def _check_not_ended(self) -> None:
        if self._ended:
            raise StoreError("a blob was written to after its end")

    def _close(self) -> None:
        self._ended = True
        self._remove_file()

    def _remove_file(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            # A committed file has another name by now.  A file that cannot be removed is removed at the next start.
            with contextlib.suppress(OSError):
                self._path.unlink()


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _append(descriptor: int, data: memoryview) -> int:
    return os.write(descriptor, data)
