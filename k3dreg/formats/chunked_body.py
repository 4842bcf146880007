"""Chunked bodies (RFC 9112, 7.1), taken apart without copying them.

Layers pushed by Docker's classic store come so.  This decoder refuses what is no chunked body with an error that says
why, and takes no control characters in extensions.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from k3dreg.oci.errors import BadRequest

# RFC 9112, 7.1: chunk-size = 1*HEXDIG.  Sixteen digits are 64 bits.  Extensions mean nothing to anybody and are read
# over; control characters in them are refused, as they have served to make two servers disagree on a body's end.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
# Bytes of a line with a chunk's size.
_LONGEST_LINE = 1024
# Bytes of all trailers together.
_LONGEST_TRAILERS = 16 * 1024


class ChunkedDecoder:
    """A push parser: bytes go in, pieces of the body come out.  It is of no use after an error, or the end."""

    def __init__(self, piece: Callable[[bytes | memoryview], None], end: Callable[[bytes], None]) -> None:
        """`piece` is called with each piece of the body, `end` with the bytes that came after it."""
        self.piece = piece
        self.end = end
        self._left = 0  # bytes of the chunk that are still to come
        self._line: bytearray | None = bytearray()  # one that has begun; None within a chunk
        self._first = True
        self._trailers = -1  # bytes of trailers; less than 0 before the last chunk
        self._ended = False

    def dataReceived(self, data: bytes | memoryview) -> None:
        """The next bytes.  Raises `BadRequest` for what is no chunked body."""
        position, size = 0, len(data)
        view: memoryview | None = None
        piece: bytes | memoryview
        while position < size:
            if self._line is None:
                stop = min(size, position + self._left)
                self._left -= stop - position
                if position == 0 and stop == size:
                    piece = data
                else:
                    view = memoryview(data) if view is None else view
                    piece = view[position:stop]
                position = stop
                if self._left == 0:
                    self._line = bytearray()
                self.piece(piece)
                continue
            position = self._read_line(self._line, data, position)
            if self._ended:
                self.end(bytes(data[position:]))
                return

    def _read_line(self, line: bytearray, data: bytes | memoryview, position: int) -> int:
        """Take a line, or what is here of it.  Returns the position after it."""
        ahead = bytes(data[position : position + _LONGEST_LINE + 1])
        feed = ahead.find(b"\n")
        found = ahead if feed < 0 else ahead[: feed + 1]
        stop = position + len(found)
        if len(line) + len(found) > _LONGEST_LINE:
            raise BadRequest("a line between chunks is too long")
        line += found
        if feed >= 0:
            if not line.endswith(b"\r\n"):
                raise BadRequest("a line between chunks does not end with CR LF")
            self._line = bytearray()
            self._take_line(bytes(line[:-2]))
        return stop

    def _take_line(self, line: bytes) -> None:
        if self._trailers >= 0:
            self._trailers += len(line)
            if self._trailers > _LONGEST_TRAILERS:
                raise BadRequest("the trailers of a body are too long")
            self._ended = not line
            return
        if not self._first and not line:  # the end of the line that a chunk is
            self._first = True
            return
        match = _SIZE.fullmatch(line)
        if match is None or not self._first:
            raise BadRequest("a chunk does not begin with its size")
        self._first = False
        self._left = int(match[1], 16)
        if self._left:
            self._line = None
        else:
            self._trailers = 0
