"""Bodies of requests, read at the reader's pace.

Twisted Web reads a whole body before `render` (twisted#4688).  Here a request begins when its head is complete, and its
body is a stream.  So a request can be refused before its body is sent, and a blob goes to the disk as it arrives, no
faster than the disk writes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from k3dreg.oci.errors import NotYet, TooLarge
from k3dreg.streaming.byte_stream import MOST_UNREAD, ByteStream

# Bytes of a body that may arrive before it is read, while the request waits: for the check of a password, or for
# another request to the same upload session.
_UNWANTED = 64 * 1024

# Bytes of whole bodies in memory at a time, of all requests, and bytes of each body that do not count.  Nearly all
# manifests are smaller than the latter, so large ones that are sent slowly do not block them.
MOST_HELD = 32 * 1024 * 1024
NOT_COUNTED = 16 * 1024

# Bytes of a body that are read and discarded after an answer, so that the connection can be kept.  For a larger rest,
# such as a layer's, closing the connection is cheaper.
_SMALL_REST = 1024 * 1024


class BodyMemory:
    """Limits the memory for bodies that are read as a whole, of all requests together."""

    def __init__(self, most: int = MOST_HELD) -> None:
        """`most` is in bytes."""
        self._left = most

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Reserve memory for one body until the end of the `with` block.

        Call the returned function with the size of the body, in bytes, whenever that grows.  It raises `NotYet` if the
        limit is exceeded.
        """
        held = 0

        def grow(size: int) -> None:
            nonlocal held
            more = max(size - NOT_COUNTED, 0) - held
            if more > self._left:
                raise NotYet("too many large manifests are being pushed", after=1)
            self._left -= more
            held += more

        try:
            yield grow
        finally:
            self._left += held


def _free(size: int) -> None:
    """Accept any size."""


class RequestBody(ByteStream):
    """The body of one request.  Twisted uses it as the file to which it would write the body (`Request.content`).

    A `read` is cancelled when the client disconnects.  The connection has a timeout for a silent client.  After `close`
    the rest of the body is received and discarded.
    """

    def __init__(self, length: int | None, flow: Callable[[bool], None], wanted: Callable[[], None]) -> None:
        """`length` is in bytes, None for a chunked body.

        `flow` stops (False) and starts (True) reading from the connection.  `wanted` is called once, at the first
        `read`, unless bytes have arrived already.
        """
        super().__init__(flow)
        self.length = length
        self._wanted: Callable[[], None] | None = wanted
        self._most_unread = _UNWANTED
        if length == 0:
            self.end()

    async def read(self, least: int = 1) -> bytes:
        """Read as `ByteStream.read` does; the first call asks a client that waits for 100 (Continue) for the body."""
        if self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            self._most_unread = MOST_UNREAD
            if not self._ended and not self.received:
                wanted()
        return await super().read(least)

    async def read_whole(self, limit: int, grow: Callable[[int], None] = _free) -> bytes:
        """Return a whole body.  Raises `TooLarge` as soon as it is known to have more than `limit` bytes.

        `grow` is called with the number of bytes so far after each read, and may raise (see `BodyMemory.holding`).
        """
        if self.length is not None and self.length > limit:
            raise TooLarge(f"a body of {self.length} bytes; at most {limit} are accepted")
        # Not a list of pieces: if a body arrives byte by byte, that takes forty times the memory.
        whole = bytearray()
        while data := await self.read():
            whole += data
            if len(whole) > limit:
                raise TooLarge(f"a body of more than {limit} bytes, which is the limit")
            grow(len(whole))
        return bytes(whole)

    @property
    def is_small(self) -> bool:
        """Whether the rest of the body is small enough to wait for, so that the connection can be kept."""
        return self.length is not None and self.length - self.received <= _SMALL_REST

    @property
    def is_complete(self) -> bool:
        """Whether the whole body has arrived."""
        return self.is_whole or self.received == self.length

    # -- called by Twisted, which uses this as a file -------------------------------------------

    def tell(self) -> int:
        return 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0
