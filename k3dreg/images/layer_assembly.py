"""A layer's tar, put together again from its tar-split and its files."""

from __future__ import annotations

from collections.abc import Callable

from k3dreg.formats.tar_split import Raw, path_of, read_tar_split, unzip_lines
from k3dreg.oci.errors import ContentError

# Bytes of a `tar-split.json.gz`, which is held in memory while its layer is put together: about 100 for each file of
# the layer, so this is some 300,000 files.
LARGEST_TAR_SPLIT = 32 * 1024 * 1024
# Bytes that are collected before they are hashed and written, out of what a processor has as a cache of its own
# (1 MiB and up); most pieces are headers of half a KiB, and each call of the writer costs some microseconds.  512 KiB
# are no faster.  For a write of 1 MiB the kernel looks for as much memory in one piece, and where there is little of
# that left, a write was seen to take ten times as long.
_BATCH = 256 * 1024


class LayerAssembly:
    """Writes what is known of the tar and asks for the rest, file by file, in the order of the tar.

    For worker threads, one at a time: `write` hashes and does I/O.
    """

    def __init__(self, tar_split: bytes, write: Callable[[memoryview], object]) -> None:
        """`tar_split` is the content of `tar-split.json.gz`; `write` takes the tar's bytes in order, and keeps none:
        they are in memory that is used again.
        """
        self._parts = read_tar_split(unzip_lines(tar_split))
        self._write = write
        # The same memory all the time: to get and give back a batch of it costs as much as to read one.  A byte is
        # in it where it is in its batch of the tar, so that what is written begins where a batch does, whatever was
        # flushed before.
        self._batch = memoryview(bytearray(_BATCH))
        self._written = 0  # of the batch, as is the next
        self._collected = 0
        self.wanted: bytes | None = None
        self.missing = 0

    def begin(self) -> None:
        """Everything up to the first file's content.  Raises `ContentError`, and what `write` raises."""
        self._advance()

    def room(self) -> memoryview:
        """Where the next bytes of the wanted file may be put, as many as fit: some, and at most `missing`."""
        return self._batch[self._collected : self._collected + self.missing]

    def took(self, count: int) -> None:
        """So many bytes were put where `room` said; at the file's last, everything up to the next file's content."""
        self.missing -= count
        self._count(count)
        if not self.missing:
            self._advance()

    def add(self, data: bytes | memoryview) -> None:
        """The next bytes of the wanted file, from elsewhere; at its last, as `took`."""
        if self.wanted is None or len(data) > self.missing:
            raise ContentError("a layer was given more content than it has room for")
        self.missing -= len(data)
        self._collect(data)
        if not self.missing:
            self._advance()

    def flush(self) -> None:
        """Write what was collected."""
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
