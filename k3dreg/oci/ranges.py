"""Byte ranges and conditional requests (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re

from attrs import frozen

from k3dreg.oci.errors import RangeNotSatisfiable

# Ranges in one request.  Podman requests up to 1,024 chunks of a layer at once (containers/storage, pkg/chunked,
# `maxNumberMissingChunks`).
MOST_RANGES = 1024
# RFC 9110, 14.1.2: int-range = first-pos "-" [ last-pos ];  suffix-range = "-" suffix-length
_BYTE_RANGE = re.compile(r"([0-9]*)-([0-9]*)")
# No blob's size has more digits.  `int` of thousands of digits is slow, and raises above 4,300.
_DIGITS = 20
# RFC 9110, 8.8.3: entity-tag = [ "W/" ] DQUOTE *etagc DQUOTE
_ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


@frozen
class ByteRange:
    """The bytes from `start` up to, not including, `stop`.  Never empty."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def content_range(self, size: int) -> str:
        """Return the value of `Content-Range` (RFC 9110, 14.4) for content of `size` bytes in all."""
        return f"bytes {self.start}-{self.stop - 1}/{size}"


def parse_ranges(header: str | None, size: int) -> tuple[ByteRange, ...]:
    """Return the ranges of `size` bytes that the value of a `Range` header requests, () for the whole.

    The ranges have the order of the header and are never joined, as Podman matches the parts with its ranges by their
    order.  Ranges beyond the end are left out (RFC 9110, 14.1.2).

    A server may ignore a Range (RFC 9110, 14.2).  The result is () for another unit, for a value that does not parse,
    for more than `MOST_RANGES` ranges, and for ranges that are together larger than the whole (RFC 9110, 17.15).  It is
    also () for empty content: no `Content-Range` can describe it, and some clients send `bytes=0-` with every request.

    Raises `RangeNotSatisfiable` if all ranges begin at or after the end or are a suffix of no bytes, and if a range
    ends before it begins.
    """
    if header is None or size == 0:
        return ()
    unit, _, listed = header.partition("=")
    if unit.strip(" \t").lower() != "bytes":
        return ()
    # RFC 9110, 5.6.1.2: empty elements of a list are ignored.
    specs = [spec for each in listed.split(",") if (spec := each.strip(" \t"))]
    matches = [match for spec in specs if (match := _BYTE_RANGE.fullmatch(spec)) and spec != "-"]
    if not specs or len(matches) < len(specs) or len(specs) > MOST_RANGES:
        return ()
    ranges = tuple(found for match in matches if (found := _resolve(match[1], match[2], size)) is not None)
    if not ranges:
        raise RangeNotSatisfiable(f"the requested range lies outside the {size} bytes", size=size)
    return ranges if sum(each.size for each in ranges) <= size else ()


def _resolve(first: str, last: str, size: int) -> ByteRange | None:
    """Return one range within `size` bytes, None if it has no byte in them."""
    if not first:
        length = _number(last)
        return ByteRange(max(0, size - length), size) if length else None
    start = _number(first)
    if last and _number(last) < start:
        # RFC 9110, 14.2 allows to ignore or reject it; the conformance tests of the distribution-spec expect 416.
        raise RangeNotSatisfiable("the requested range ends before it begins", size=size)
    if start >= size:
        return None
    return ByteRange(start, min(size, _number(last) + 1) if last else size)


def if_range_holds(header: str | None, etag: str) -> bool:
    """Return whether a `Range` counts, by the value of `If-Range` (RFC 9110, 13.1.5), None for no such header.

    The comparison is strong, so a weak tag never matches.  Nor does a date, as content has no date in this registry.
    """
    return header is None or header.strip(" \t") == etag


def if_none_match_holds(header: str | None, etag: str) -> bool:
    """Return whether to send the content, by the value of `If-None-Match` (RFC 9110, 13.1.2), None for no such header.

    False means that the client has the content already, and gets 304.  The comparison is weak.
    """
    if header is None:
        return True
    return header.strip(" \t") != "*" and etag not in _ENTITY_TAG.findall(header)


def _number(digits: str) -> int:
    return int(digits.lstrip("0")[:_DIGITS] or "0")
