"""Assemble a layer's tar again from its tar-split and its files."""

from __future__ import annotations

from collections.abc import Callable

from k3dreg.formats.tar_split import Raw, path_of, read_tar_split, unzip_lines
from k3dreg.oci.errors import ContentError

# Bytes of a `tar-split.json.gz`, which is in memory while its layer is assembled.  It has about 100 bytes for each
# file of the layer, so this allows some 300,000 files.
LARGEST_TAR_SPLIT = 32 * 1024 * 1024
# Bytes that are collected before they are hashed and written.  Most pieces are headers of half a KiB, and each call of
# the writer costs some microseconds.  The batch should fit into a processor's own cache (1 MiB and more).  512 KiB are
# no faster.  For a write of 1 MiB the kernel looks for contiguous memory of that size; where that was scarce, a write
# took ten times as long.
_BATCH = 256 * 1024


class LayerAssembly:
    """Writes the tar of a layer and asks for the contents of its files in the order of the tar.

    Implements `IContentSink`.  Call `begin` first.  Call its methods in worker threads, one at a time, because `write`
    hashes and does I/O.
    """

    def __init__(self, tar_split: bytes, write: Callable[[memoryview], object]) -> None:
        """`tar_split`: the content of `tar-split.json.gz`.

        `write` is called with the tar's bytes in order.  It must not keep the buffer, which is reused.
        """
        self._parts = read_tar_split(unzip_lines(tar_split))
        self._write = write
        # One buffer for all batches: allocating and freeing one for each costs as much as reading a batch.  A byte's
        # offset in the buffer is its offset in the tar modulo `_BATCH`, so writes stay aligned even after a `flush`.
        self._batch = memoryview(bytearray(_BATCH))
        self._written = 0  # bytes of the batch that were passed to `write`
        self._collected = 0  # bytes of the batch that are in the buffer
        self.wanted: bytes | None = None
        self.missing = 0

    def begin(self) -> None:
        """Write the tar up to the first file's content.  Raises `ContentError`, and what `write` raises."""
        self._advance()

    def room(self) -> memoryview:
        """Return a buffer for the next bytes of the wanted file, at most `missing` long.

        It is valid until the next call of any method.  It is empty only when no file is wanted.
        """
        return self._batch[self._collected : self._collected + self.missing]

    def took(self, count: int) -> None:
        """Accept the `count` bytes that were written into the buffer that `room()` returned.

        After the last byte of a file, write the tar up to the next file's content.  Raises as `begin`.
        """
        self.missing -= count
        self._count(count)
        if not self.missing:
            self._advance()

    def add(self, data: bytes | memoryview) -> None:
        """Copy the next bytes of the wanted file from `data`.  Otherwise as `took`.

        Raises `ContentError` for more than `missing` bytes, and as `begin`.
        """
        if self.wanted is None or len(data) > self.missing:
            raise ContentError("a layer was given more content than it has room for")
        self.missing -= len(data)
        self._collect(data)
        if not self.missing:
            self._advance()

    def flush(self) -> None:
        """Write the collected bytes."""
        if self._collected > self._written:
            start, self._written = self._written, self._collected
            self._write(self._batch[start : self._collected])

    def _advance(self) -> None:
        for part in self._parts:
            if isinstance(part, Raw):
                self._collect(part.data)
            else:
                self.wanted, self.missing = path_of(part.name), part.size
                return
        self.wanted = None
        self.flush()

    def _collect(self, data: bytes | memoryview) -> None:
        at = 0
        while at < len(data):
            piece = data[at : at + _BATCH - self._collected]
            self._batch[self._collected : self._collected + len(piece)] = piece
            at += len(piece)
            self._count(len(piece))

    def _count(self, added: int) -> None:
        self._collected += added
        if self._collected == _BATCH:
            self.flush()
            self._collected = self._written = 0
