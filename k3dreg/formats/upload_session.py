"""Upload sessions as a state machine without I/O (distribution-spec 1.1, "Pushing blobs").

A session receives bytes in order, by any number of requests, and is then committed or cancelled:

    OPEN --begin--> RECEIVING --end--> OPEN --commit--> COMMITTED
                                       OPEN, RECEIVING --cancel--> CANCELLED

The session only counts bytes; the caller stores them.
"""

from __future__ import annotations

import enum
import re

from attrs import frozen

from k3dreg.oci.errors import SizeNotMatched, TooLarge, UploadInvalid, UploadOutOfOrder, UploadUnknown

# distribution-spec 1.1, "Pushing a blob in chunks": <start>-<end>, both inclusive.  Some clients send the format of
# RFC 9110 instead, with a unit before the range and a size after it.
_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?([0-9]{1,19})-([0-9]{1,19})(?:/(?:[0-9]{1,19}|\*))?")

# Bytes of a blob.  The largest layers in public registries have some tens of GB (models, CUDA).  This limit is far
# above them, but still bounds what one client can send.
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
    """Parse the `Content-Range` of a PATCH or PUT; None if there is none.  Raises `UploadInvalid`."""
    if header is None:
        return None
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise UploadInvalid(f"not a range of bytes, <start>-<end>: {header[:100]!r}")
    return ContentRange(int(match[1]), int(match[2]) + 1)


def received_range(received: int) -> str:
    """Return the value of `Range` in answers about a session that has received `received` bytes.

    The end is inclusive, so no value means "no bytes".  Registries send `0-0` for it, which Docker's client can parse
    (it requires end >= start).
    """
    return f"0-{max(0, received - 1)}"


class State(enum.Enum):
    """The state of an upload session."""

    OPEN = "open"
    RECEIVING = "receiving"
    COMMITTED = "committed"
    CANCELLED = "cancelled"


class UploadSession:
    """One upload: how many bytes it has received, and which requests it accepts next.

    For any order of calls, `received` is the sum of the counts that `add` accepted and never shrinks.  A session that
    was committed or cancelled accepts no more calls.
    """

    def __init__(self, limit: int = LARGEST_BLOB) -> None:
        self._limit = limit
        self._state = State.OPEN
        self._received = 0
        self._stop: int | None = None  # the offset at which the request under way says that it will end

    @property
    def state(self) -> State:
        return self._state

    @property
    def received(self) -> int:
        """Return how many bytes have been received."""
        return self._received

    @property
    def has_ended(self) -> bool:
        return self._state in (State.COMMITTED, State.CANCELLED)

    def begin(self, content_range: ContentRange | None, length: int | None) -> None:
        """Begin a request with bytes.  `length`: its Content-Length, None for a chunked body.

        Raises `UploadOutOfOrder` when the range does not start at `received`, `SizeNotMatched` when range and length
        differ, `TooLarge`, `UploadUnknown` when the session has ended, and `UploadInvalid` while another request is
        under way.  The session is then unchanged.
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
        """Raise as `add` would for `count` more bytes, without counting them."""
        self._check_alive()
        if self._state is not State.RECEIVING:
            raise UploadInvalid("bytes outside a request")
        if self._stop is not None and self._received + count > self._stop:
            raise SizeNotMatched("a body is longer than its Content-Range says")
        if self._received + count > self._limit:
            raise TooLarge(f"a blob of more than {self._limit} bytes")

    def add(self, count: int) -> None:
        """Count `count` bytes as received, after the caller has stored them.

        Raises `SizeNotMatched` for more bytes than the request's range or length, `TooLarge`, `UploadUnknown` when the
        session has ended, and `UploadInvalid` outside of a request.
        """
        self.check(count)
        self._received += count

    def end(self) -> None:
        """End the request under way.

        Raises `SizeNotMatched` when its body was shorter than its range or length; the received bytes still count.
        Raises `UploadUnknown` when the session has ended, and `UploadInvalid` without a request.
        """
        self._check_alive()
        if self._state is not State.RECEIVING:
            raise UploadInvalid("no request to end")
        stop, self._stop = self._stop, None
        self._state = State.OPEN
        if stop is not None and stop != self._received:
            raise SizeNotMatched(f"a body ended at byte {self._received} that was to end at {stop}")

    def interrupt(self) -> None:
        """End a request whose connection was lost, if any.  The client may continue from `received`."""
        if self._state is State.RECEIVING:
            self._stop = None
            self._state = State.OPEN

    def commit(self) -> None:
        """Record that the upload is a blob now.

        Raises `UploadUnknown` when the session has ended, and `UploadInvalid` while a request is under way.
        """
        self._check_alive()
        if self._state is State.RECEIVING:
            raise UploadInvalid("another request to this upload session is under way")
        self._state = State.COMMITTED

    def cancel(self) -> None:
        """Cancel the upload, even during a request.  Raises `UploadUnknown` when the session has ended."""
        self._check_alive()
        self._stop = None
        self._state = State.CANCELLED

    def _check_alive(self) -> None:
        if self.has_ended:
            raise UploadUnknown("this upload session has ended")
