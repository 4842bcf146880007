"""Where the bytes of an upload wait until they are a blob."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import DigestMismatch, StoreError
from k3dreg.store.interfaces import IBlobStore, IBlobWriter
from k3dreg.streaming.content import IFileHandle

# Bytes read at once where a blob has to be hashed again.
_CHUNK = 1024 * 1024


class Staging:
    """Stages uploads in the blob store's own staging directory, which is emptied at each start.

    So sessions end with the process: what a client was told of a session is not a promise to keep it.
    """

    def __init__(self, store: IBlobStore) -> None:
        self._store = store

    def begin(self, algorithm: str = "sha256") -> IBlobWriter:
        """Makes no file before the first byte: most sessions that are opened and given up have none."""
        return StagedUpload(self._store, algorithm)


class StagedUpload:
    """A durable blob writer that learns only in the end by which algorithm its content is named.

    For worker threads; one call waits for another.
    """

    def __init__(self, store: IBlobStore, algorithm: str) -> None:
        self.written = 0
        self._store = store
        self._algorithm = algorithm
        self._lock = threading.Lock()
        self._writer: IBlobWriter | None = None
        self._ended = False

    def write(self, data: bytes | memoryview) -> None:
        """Append.  Raises `StoreFull` or `StoreError`."""
        with self._lock:
            self._open().write(data)
            self.written += len(data)

    def open_reader(self) -> IFileHandle:
        """A handle on what has been written."""
        with self._lock:
            return self._open().open_reader()

    def commit(self, digest: Digest | None = None, size: int | None = None) -> Digest:
        """Verify and make visible, durably.

        Bytes were hashed as they came, by the algorithm most digests have.  For a digest of another one they are
        read and hashed again: the client only says it in its last request.
        Raises `DigestMismatch`, `StoreFull`, `StoreError`.
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
        """Forget it."""
        with self._lock:
            self._ended = True
            if self._writer is not None:
                self._writer.abort()

    def _commit_again(self, writer: IBlobWriter, digest: Digest, size: int | None) -> Digest:
        reader = writer.open_reader()
        try:
            # Hashed first and copied then: what does not match is not written a second time.
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
