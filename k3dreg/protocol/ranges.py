"""Byte ranges and conditional requests (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re

from attrs import frozen

from k3dreg.model.errors import RangeNotSatisfiable

# RFC 9110, 14.1.2: int-range = first-pos "-" [ last-pos ];  suffix-range = "-" suffix-length
_BYTE_RANGE = re.compile(r"([0-9]*)-([0-9]*)")
# More digits than any blob's size has; `int` of thousands of digits is slow, and refused by Python past 4300.
_DIGITS = 20
# RFC 9110, 8.8.3: entity-tag = [ "W/" ] DQUOTE *etagc DQUOTE
_ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


@frozen
class ByteRange:
    """The bytes from `start` up to, not including, `stop`.  Never empty."""

    start: int
    stop: int

    def content_range(self, size: int) -> str:
        """The value of `Content-Range` (RFC 9110, 14.4), of content of `size` bytes."""
        return f"bytes {self.start}-{self.stop - 1}/{size}"


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """The part of `size` bytes that the value of a `Range` header asks for, or None for the whole.

    A server may ignore a Range (RFC 9110, 14.2), and that is what happens to everything but one well-formed range
    of bytes: no header, another unit, several ranges, nonsense.  Also to any range of empty content: no
    `Content-Range` can describe it, and some clients send `bytes=0-` with every request.

    Raises `RangeNotSatisfiable` when the range begins at or after the end, ends before it begins, or is a suffix of no
    bytes.
    """
    if header is None or size == 0:
        return None
    unit, _, spec = header.partition("=")
    match = _BYTE_RANGE.fullmatch(spec.strip(" \t"))
    if unit.strip(" \t").lower() != "bytes" or match is None:
        return None
    first, last = match.groups()
    if not first:
        if not last:
            return None
        length = _number(last)
        if length == 0:
            raise RangeNotSatisfiable("the last 0 bytes were asked for", size=size)
        return ByteRange(max(0, size - length), size)
    start = _number(first)
    if last and _number(last) < start:
        # It could be ignored as well (RFC 9110, 14.2: "ignore or reject"); the conformance tests want it rejected.
        raise RangeNotSatisfiable("a range was asked for that ends before it begins", size=size)
    if start >= size:
        raise RangeNotSatisfiable(f"a range was asked for that begins after the last of {size} bytes", size=size)
    return ByteRange(start, min(size, _number(last) + 1) if last else size)


def if_range_holds(header: str | None, etag: str) -> bool:
    """Whether a `Range` is to be heeded, by the value of `If-Range` (RFC 9110, 13.1.5), if there is one.

    The comparison is strong, so a weak tag never holds; a date never does either, as content has no date here.
    """
    return header is None or header.strip(" \t") == etag


def if_none_match_holds(header: str | None, etag: str) -> bool:
    """Whether the content is to be sent, by the value of `If-None-Match` (RFC 9110, 13.1.2), if there is one.

    False means that the client has it already: 304.  The comparison is weak.
    """
    if header is None:
        return True
    return header.strip(" \t") != "*" and etag not in _ENTITY_TAG.findall(header)


def _number(digits: str) -> int:
    return int(digits.lstrip("0")[:_DIGITS] or "0")
