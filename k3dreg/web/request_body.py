"""Bodies of requests, read at the reader's pace.

Twisted Web reads a body to its end before a request is looked at.  Here a request begins when its head is complete,
and its body is a stream: what is not wanted is refused before it was sent, and what is wanted goes to the disk as it
comes, no faster than the disk takes it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator

from twisted.internet.defer import CancelledError, Deferred

from k3dreg.oci.errors import BadRequest, NotYet, TooLarge

# Bytes above which pieces that have arrived are not joined for one `read`: a trip to a worker thread takes about
# 0.1 ms, hashing and writing so much two or three times that.  Pieces as large as these are passed on as they came.
BATCH = 256 * 1024
# A piece or two for the worker, and as much that arrives meanwhile.  With eight pushes at a time this is what they
# cost in memory.
HIGH_WATER = 512 * 1024
LOW_WATER = HIGH_WATER // 2

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


class RequestBody:
    """The body of one request.  Also what Twisted takes for the file that it writes bodies to."""

    def __init__(
        self,
        length: int | None,
        flow: Callable[[bool], None],
        wanted: Callable[[], None],
    ) -> None:
        """`length` in bytes, None when it is chunked.

        `flow` stops (False) and starts (True) the reading from the connection; `wanted` is called once, when
        somebody waits for the first byte.
        """
        self.length = length
        self.received = 0
        self._flow = flow
        self._wanted: Callable[[], None] | None = wanted
        self._chunks: deque[bytes | memoryview] = deque()
        self._unread = 0
        self._stopped = False
        self._reader: Deferred[None] | None = None
        self._ended = length == 0
        self._error: BadRequest | None = None
        self._closed = False

    # -- the reader's side ----------------------------------------------------------------------

    async def read(self, least: int = 1) -> bytes:
        """The next bytes, all that have arrived up to about `BATCH`; b"" at the end of the body.

        Raises `BadRequest` after the last bytes before what is no body.  Cancelled when the client goes away; how long
        a silent client is waited for is the connection's business.
        """
        if self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            if not self._ended and not self.received:
                wanted()
        if not self._chunks and not self._ended:
            if self._closed:
                raise CancelledError
            self._reader = Deferred(lambda _: self._forget_reader())
            await self._reader
        if self._chunks:
            return self._batch()
        if self._error is not None:
            raise self._error
        return b""

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
        return (self._ended and self._error is None) or self.received == self.length

    def _batch(self) -> bytes:
        batch = [self._chunks.popleft()]
        size = len(batch[0])
        while self._chunks and size < BATCH:
            batch.append(self._chunks.popleft())
            size += len(batch[-1])
        self._unread -= size
        if self._stopped and self._unread <= LOW_WATER:
            self._stopped = False
            self._flow(True)
        return batch[0] if len(batch) == 1 and isinstance(batch[0], bytes) else b"".join(batch)

    def _forget_reader(self) -> None:
        self._reader = None

    # -- the connection's side ------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        """Bytes arrived.  Their reader is told in `arrived`: there may be more in what was received with them."""
        self.received += len(data)
        if self._closed:
            return
        self._chunks.append(data)
        self._unread += len(data)
        if self._unread > (HIGH_WATER if self._wanted is None else _UNWANTED) and not self._stopped:
            self._stopped = True
            self._flow(False)

    def arrived(self) -> None:
        """All that was received at once has been written."""
        if self._chunks:
            self._wake()

    def end(self, error: BadRequest | None = None) -> None:
        """The last byte has arrived, or what follows is no body."""
        self._ended = True
        self._error = error
        self._stopped = False
        self._wake()

    def close(self) -> None:
        """Nobody wants the rest: the request was answered, or its connection is lost."""
        if self._closed:
            return
        self._closed = True
        self._chunks.clear()
        self._unread = 0
        if self._stopped:
            self._stopped = False
            self._flow(True)
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.errback(CancelledError())

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.callback(None)

    # -- what Twisted does with the file it believes this to be ---------------------------------

    def tell(self) -> int:
        return 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0
