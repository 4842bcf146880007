"""Bodies with a Content-Length (RFC 9112, 6.2)."""

from __future__ import annotations

from collections.abc import Callable


class CountedDecoder:
    """A push parser, as `ChunkedDecoder`: bytes go in, pieces of the body come out.  Of no use after the end."""

    def __init__(self, length: int, piece: Callable[[bytes | memoryview], None], end: Callable[[bytes], None]) -> None:
        """`length` in bytes, more than 0.

        `piece` is called with each piece of the body, `end` with the bytes that came after it.
        """
        self.piece = piece
        self.end = end
        self._left = length

    def dataReceived(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        left = self._left
        if len(data) < left:
            self._left -= len(data)
            self.piece(data)
        else:
            self._left = 0
            self.piece(data[:left] if len(data) > left else data)
            self.end(bytes(data[left:]))
