"""Upload sessions as a state machine without I/O (distribution-spec 1.1, "Pushing blobs").

A session takes bytes in order, from any number of requests, and is then committed or cancelled:

    OPEN --begin--> RECEIVING --end--> OPEN --commit--> COMMITTED
                                       OPEN, RECEIVING --cancel--> CANCELLED

What arrives is counted here and kept elsewhere.
"""

from __future__ import annotations

import enum
import re

from attrs import frozen

from k3dreg.oci.errors import SizeNotMatched, TooLarge, UploadInvalid, UploadOutOfOrder, UploadUnknown

# distribution-spec 1.1, "Pushing a blob in chunks": <start>-<end>, both inclusive.  Some clients write a header of
# RFC 9110 instead, with a unit before and a size after it.
_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?([0-9]{1,19})-([0-9]{1,19})(?:/(?:[0-9]{1,19}|\*))?")

# The largest blob.  The largest layers in public registries have some tens of GB (models, CUDA); this is far above
# them and still keeps one client from counting past what any disk has.
LARGEST_BLOB = 1 << 40


@frozen
class ContentRange:
    """The bytes from `start` up to, not including, `stop` of a blob."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def parse_content_range(header: str | None) -> ContentRange | None:
    """The value of `Content-Range` on a PATCH or PUT; None when there is none.  Raises `UploadInvalid`."""
    if header is None:
        return None
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise UploadInvalid(f"not a range of bytes, <start>-<end>: {header[:100]!r}")
    return ContentRange(int(match[1]), int(match[2]) + 1)


def received_range(received: int) -> str:
    """The value of `Range` in answers about a session that has `received` bytes.

    The end is inclusive, so there is no way to say "nothing"; `0-0` is what registries say, and what Docker's client
    can parse (it wants end >= start).
    """
    return f"0-{max(0, received - 1)}"


class State(enum.Enum):
    """Where a session is."""

    OPEN = "open"
    RECEIVING = "receiving"
    COMMITTED = "committed"
    CANCELLED = "cancelled"


class UploadSession:
    """One upload: how many bytes it has, and what may come next.

    The invariants, whatever the order of calls: `received` never shrinks, equals the bytes told to `add`, and does
    not change once the session has ended; a session that has ended takes nothing more.
    """

    def __init__(self, limit: int = LARGEST_BLOB) -> None:
        self._limit = limit
        self._state = State.OPEN
        self._received = 0
        self._stop: int | None = None  # where the request under way says it will end

    @property
    def state(self) -> State:
        return self._state

    @property
    def received(self) -> int:
        """Bytes so far."""
        return self._received

    @property
    def has_ended(self) -> bool:
        return self._state in (State.COMMITTED, State.CANCELLED)

    def begin(self, content_range: ContentRange | None, length: int | None) -> None:
        """A request with bytes begins.  `length` is its Content-Length, None for a chunked body.

        Raises `UploadOutOfOrder` when the range does not begin where the session ends, `SizeNotMatched` when range
        and length do not agree, `TooLarge`, `UploadUnknown` when the session has ended, and `UploadInvalid` while
        another request is under way.  The session is unchanged then.
        """
        self._check_alive()
        if self._state is State.RECEIVING:
            raise UploadInvalid("another request to this upload session is under way")
        if content_range is not None:
            if content_range.start != self._received:
                raise UploadOutOfOrder(
                    f"a chunk from byte {content_range.start} came where byte {self._received} is next",
                    received=self._received,
                )
            if length is not None and length != content_range.length:
                raise SizeNotMatched(f"a chunk of {content_range.length} bytes has a body of {length}")
            length = content_range.length
        stop = None if length is None else self._received + length
        if (stop or 0) > self._limit:
            raise TooLarge(f"a blob of more than {self._limit} bytes")
        self._stop = stop
        self._state = State.RECEIVING

    def check(self, count: int) -> None:
        """Whether `count` more bytes may be taken.  Raises as `add` does."""
        self._check_alive()
        if self._state is not State.RECEIVING:
            raise UploadInvalid("bytes outside a request")
        if self._stop is not None and self._received + count > self._stop:
            raise SizeNotMatched("a body is longer than its Content-Range says")
        if self._received + count > self._limit:
            raise TooLarge(f"a blob of more than {self._limit} bytes")

    def add(self, count: int) -> None:
        """`count` bytes have been kept.  Raises `SizeNotMatched`, `TooLarge`, or `UploadUnknown`."""
        self.check(count)
        self._received += count

    def end(self) -> None:
        """The body is complete.  Raises `SizeNotMatched` when it was shorter than its range; what came is kept."""
        self._check_alive()
        if self._state is not State.RECEIVING:
            raise UploadInvalid("no request to end")
        stop, self._stop = self._stop, None
        self._state = State.OPEN
        if stop is not None and stop != self._received:
            raise SizeNotMatched(f"a body ended at byte {self._received} that was to end at {stop}")

    def interrupt(self) -> None:
        """The request under way was lost; the client may go on from `received`.  No error when there is none."""
        if self._state is State.RECEIVING:
            self._stop = None
            self._state = State.OPEN

    def commit(self) -> None:
        """It is a blob now.  Raises `UploadUnknown`, or `UploadInvalid` while a request is under way."""
        self._check_alive()
        if self._state is State.RECEIVING:
            raise UploadInvalid("another request to this upload session is under way")
        self._state = State.COMMITTED

    def cancel(self) -> None:
        """Nobody wants it any more.  Raises `UploadUnknown` when it has ended."""
        self._check_alive()
        self._stop = None
        self._state = State.CANCELLED

    def _check_alive(self) -> None:
        if self.has_ended:
            raise UploadUnknown("this upload session has ended")
