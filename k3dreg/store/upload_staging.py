"""Stage the bytes of an upload until its client names their digest."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import DigestMismatch, StoreError
from k3dreg.store.interfaces import IBlobStore, IBlobWriter
from k3dreg.streaming.content import IFileHandle

# Bytes read at once when a blob has to be hashed again.
_CHUNK = 1024 * 1024


class Staging:
    """Stages uploads in the blob store's staging directory.  Implements `IStaging`.

    That directory is emptied at each start, so upload sessions end with the process.  Clients then start a new one.
    """

    def __init__(self, store: IBlobStore) -> None:
        self._store = store

    def begin(self, algorithm: str = "sha256") -> IBlobWriter:
        """Return a durable writer for one upload; see `IStaging`.

        It creates its file at the first byte: most sessions that clients open and abandon have no bytes.
        """
        return StagedUpload(self._store, algorithm)


class StagedUpload:
    """A durable blob writer that learns the algorithm of its digest only at `commit`.  Implements `IBlobWriter`.

    Call its methods in worker threads; they wait for each other.
    """

    def __init__(self, store: IBlobStore, algorithm: str) -> None:
        self.written = 0
        self._store = store
        self._algorithm = algorithm
        self._lock = threading.Lock()
        self._writer: IBlobWriter | None = None
        self._ended = False

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`.  Raises `StoreFull` or `StoreError`."""
        with self._lock:
            self._open().write(data)
            self.written += len(data)

    def open_reader(self) -> IFileHandle:
        """Return a handle on the bytes written so far and later.  The caller closes it.  Raises `StoreError`."""
        with self._lock:
            return self._open().open_reader()

    def commit(self, digest: Digest | None = None, size: int | None = None) -> Digest:
        """Verify the blob, make it visible and durable, and return its digest.

        The bytes were hashed by the expected algorithm as they arrived.  For a digest of another algorithm they are
        read and hashed again, because the client names the digest only in its last request.  Raises `DigestMismatch`,
        `StoreFull` or `StoreError`.
        """
        with self._lock:
            writer = self._open()
            self._ended = True
            try:
                if digest is None or digest.algorithm == self._algorithm:
                    return writer.commit(digest, size)
                return self._commit_again(writer, digest, size)
            finally:
                writer.abort()

    def abort(self) -> None:
        """Remove the staged bytes.  Safe at any time, any number of times, after `commit` too."""
        with self._lock:
            self._ended = True
            if self._writer is not None:
                self._writer.abort()

    def _commit_again(self, writer: IBlobWriter, digest: Digest, size: int | None) -> Digest:
        reader = writer.open_reader()
        try:
            # Hashed before it is copied, so that content that does not match is not written a second time.
            hasher = digest.hasher()
            for data in _chunks(reader):
                hasher.update(data)
            if hasher.hexdigest() != digest.hex:
                raise DigestMismatch(f"{self.written} bytes that should be {digest} are not")
            other = self._store.writer(digest.algorithm, durable=True)
            try:
                for data in _chunks(reader):
                    other.write(data)
                return other.commit(digest, size)
            finally:
                other.abort()
        finally:
            reader.close()

    def _open(self) -> IBlobWriter:
        if self._ended:
            raise StoreError("an upload was written to after its end")
        if self._writer is None:
            self._writer = self._store.writer(self._algorithm, durable=True)
        return self._writer


def _chunks(reader: IFileHandle) -> Iterator[bytes]:
    offset = 0
    while data := reader.read(offset, _CHUNK):
        yield data
        offset += len(data)
