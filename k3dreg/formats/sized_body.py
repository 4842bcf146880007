"""Decode bodies with a Content-Length (RFC 9112, 6.2)."""

from __future__ import annotations

from collections.abc import Callable


class CountedDecoder:
    """A push parser with the interface of `ChunkedDecoder`: bytes go in, pieces of the body come out.

    The caller must not use it after the end.
    """

    def __init__(self, length: int, piece: Callable[[bytes | memoryview], None], end: Callable[[bytes], None]) -> None:
        """`length`: bytes of the body, more than 0.

        `piece` is called with each piece of the body, and `end` with the received bytes that follow the body.
        """
        self.piece = piece
        self.end = end
        self._left = length

    def dataReceived(self, data: bytes | memoryview) -> None:
        """Decode the next bytes."""
        left = self._left
        if len(data) < left:
            self._left -= len(data)
            self.piece(data)
        else:
            self._left = 0
            self.piece(data[:left] if len(data) > left else data)
            self.end(bytes(data[left:]))
