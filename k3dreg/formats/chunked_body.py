"""Decode chunked bodies (RFC 9112, 7.1) without copying them.

Docker's classic store pushes layers in this form.  The decoder refuses a malformed body with an error that says why,
and control characters in chunk extensions.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from k3dreg.oci.errors import BadRequest

# RFC 9112, 7.1: chunk-size = 1*HEXDIG.  Sixteen digits are 64 bits.  Extensions are ignored (7.1.1), but control
# characters in them are refused: attacks have used these to make two servers disagree on a body's end.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
# Bytes of a line between chunks, such as a chunk's size.
_LONGEST_LINE = 1024
# Bytes of all trailers together.
_LONGEST_TRAILERS = 16 * 1024


class ChunkedDecoder:
    """A push parser of a chunked body: bytes go in, pieces of the body come out.

    The caller must not use it after an error or the end.
    """

    def __init__(self, piece: Callable[[bytes | memoryview], None], end: Callable[[bytes], None]) -> None:
        """`piece` is called with each piece of the body, and `end` with the received bytes that follow the body."""
        self.piece = piece
        self.end = end
        self._left = 0  # bytes of the chunk that are still missing
        self._line: bytearray | None = bytearray()  # the line that has begun; None within a chunk
        self._first = True  # the next line has a chunk's size; False: it is the empty line after a chunk
        self._trailers = -1  # bytes of trailers; less than 0 before the last chunk
        self._ended = False

    def dataReceived(self, data: bytes | memoryview) -> None:
        """Decode the next bytes.  Raises `BadRequest` if they are no chunked body."""
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
        """Read a line, or the part of it that has arrived, and return the position after it."""
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
        if not self._first and not line:  # the CR LF after a chunk's data
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
