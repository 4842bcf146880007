"""Bodies of requests, read at the reader's pace.

Twisted Web reads a body to its end before a request is looked at.  Here a request begins when its head is complete,
and its body is a stream: what is not wanted is refused before it was sent, and what is wanted goes to the disk as it
comes, no faster than the disk takes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from k3dreg.oci.errors import NotYet, TooLarge
from k3dreg.streaming.byte_stream import HIGH_WATER, ByteStream

# Bytes that may arrive before the first is wanted, while the request waits for its turn: for a password's check, or for
# another request to the same upload session.
_UNWANTED = 64 * 1024

# Bytes of whole bodies that are in memory at a time, of all requests, and bytes of each that do not count.  Nearly all
# manifests are smaller than the latter, so large ones that are sent slowly do not keep them out.
MOST_HELD = 32 * 1024 * 1024
NOT_COUNTED = 16 * 1024

# Bytes of a body that are read and thrown away, after an answer that did not wait for them, to keep the connection.
# Reading so much takes no time; a layer is cheaper to cut off with its connection.
_SMALL_REST = 1024 * 1024


class BodyMemory:
    """A bound for the bodies that are in memory as a whole, of all requests together."""

    def __init__(self, most: int = MOST_HELD) -> None:
        """`most` in bytes."""
        self._left = most

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Within the block a body is in memory.  Call what it gives with the size of the body whenever that grows.

        That raises `NotYet` when there is no room.
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
    """Take any size."""


class RequestBody(ByteStream):
    """The body of one request.  Also what Twisted takes for the file that it writes bodies to.

    A `read` is cancelled when the client goes away; how long a silent client is waited for is the connection's
    business.  After `close` the rest is received and thrown away.
    """

    def __init__(self, length: int | None, flow: Callable[[bool], None], wanted: Callable[[], None]) -> None:
        """`length` in bytes, None when it is chunked.

        `flow` stops (False) and starts (True) the reading from the connection; `wanted` is called once, when the
        first byte is waited for.
        """
        super().__init__(flow)
        self.length = length
        self._wanted: Callable[[], None] | None = wanted
        self._most_unread = _UNWANTED
        if length == 0:
            self.end()

    async def read(self, least: int = 1) -> bytes:
        """See `ByteStream.read`."""
        if self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            self._most_unread = HIGH_WATER
            if not self._ended and not self.received:
                wanted()
        return await super().read(least)

    async def read_whole(self, limit: int, grow: Callable[[int], None] = _free) -> bytes:
        """All of a small body.  Raises `TooLarge` if it has more than `limit` bytes, without waiting for them.

        `grow` is called with the number of bytes that have come, before more are waited for, and may raise.
        """
        if self.length is not None and self.length > limit:
            raise TooLarge(f"a body of {self.length} bytes; at most {limit} are accepted")
        # In one piece: a body that comes byte by byte would weigh forty times as much in a list.
        whole = bytearray()
        while data := await self.read():
            whole += data
            if len(whole) > limit:
                raise TooLarge(f"a body of more than {limit} bytes, which is the limit")
            grow(len(whole))
        return bytes(whole)

    @property
    def is_small(self) -> bool:
        """Whether what is still to come is worth waiting for, to keep the connection."""
        return self.length is not None and self.length - self.received <= _SMALL_REST

    @property
    def is_complete(self) -> bool:
        """Whether all of it has arrived."""
        return self.is_whole or self.received == self.length

    # -- what Twisted does with the file it believes this to be ---------------------------------

    def tell(self) -> int:
        return 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0
