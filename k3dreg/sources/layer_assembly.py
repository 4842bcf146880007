"""A layer's tar, put together again from its tar-split and its files."""

from __future__ import annotations

from collections.abc import Callable

from zope.interface import implementer

from k3dreg.interfaces import IContentSink
from k3dreg.model.errors import ContentError
from k3dreg.protocol.tar_split import Raw, path_of, read_tar_split, unzip_lines

# Bytes of a `tar-split.json.gz`, which is held in memory while its layer is put together: about 100 for each file of
# the layer, so this is some 300,000 files.
LARGEST_TAR_SPLIT = 32 * 1024 * 1024
# Bytes that are collected before they are hashed and written: most pieces are headers of half a KiB, and each call of
# the writer costs some microseconds.
_BATCH = 256 * 1024


@implementer(IContentSink)
class LayerAssembly:
    """Writes what is known of the tar and asks for the rest, file by file, in the order of the tar.

    For worker threads, one at a time: `write` hashes and does I/O.
    """

    def __init__(self, tar_split: bytes, write: Callable[[bytes], object]) -> None:
        """`tar_split` is the content of `tar-split.json.gz`; `write` takes the tar's bytes in order."""
        self._parts = read_tar_split(unzip_lines(tar_split))
        self._write = write
        self._pieces: list[bytes] = []
        self._collected = 0
        self.wanted: bytes | None = None
        self.missing = 0

    def begin(self) -> None:
        """Everything up to the first file's content.  Raises `ContentError`, and what `write` raises."""
        self._advance()

    def add(self, data: bytes | memoryview) -> None:
        """The next bytes of the wanted file; at its last, everything up to the next file's content."""
        if self.wanted is None or len(data) > self.missing:
            raise ContentError("a layer was given more content than it has room for")
        # A view would be of a buffer that may be used again.
        self._collect(bytes(data))
        self.missing -= len(data)
        if not self.missing:
            self._advance()

    def flush(self) -> None:
        """Write what was collected."""
        if self._pieces:
            pieces, self._pieces, self._collected = self._pieces, [], 0
            self._write(b"".join(pieces))

    def _advance(self) -> None:
        for part in self._parts:
            if isinstance(part, Raw):
                self._collect(part.data)
            else:
                self.wanted, self.missing = path_of(part.name), part.size
                return
        self.wanted = None
        self.flush()

    def _collect(self, data: bytes) -> None:
        self._pieces.append(data)
        self._collected += len(data)
        if self._collected >= _BATCH:
            self.flush()
