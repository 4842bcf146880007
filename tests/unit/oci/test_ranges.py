"""Byte ranges and conditions, against RFC 9110's own words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k3dreg.oci.errors import RangeNotSatisfiable
from k3dreg.oci.ranges import MOST_RANGES, ByteRange, if_none_match_holds, if_range_holds, parse_ranges

SIZE = 1000
NOT_RANGES = """
    bytes bytes= bytes=- bytes=a-b lines=0-5 bytes=+1-2 bytes=1-2-3 bytes=٣-٤ bytes=0x1-2
    bytes==0-1 0-5 bytes=, bytes=,, bytes=0-1,a bytes=0-1;4-5 bytes=0-1,- bytes=0-1,4--5
"""


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-499", 0, 500),
        ("bytes=500-999", 500, 1000),
        ("bytes=0-", 0, 1000),
        ("bytes=999-", 999, 1000),
        ("bytes=0-0", 0, 1),
        ("bytes=500-99999", 500, 1000),
        ("bytes=-1", 999, 1000),
        ("bytes=-500", 500, 1000),
        ("bytes=-5000", 0, 1000),
        ("Bytes= 7-8 ", 7, 9),
        ("bytes=0007-0008", 7, 9),
        ("bytes=0-" + "9" * 5000, 0, 1000),
        ("bytes=-" + "9" * 5000, 0, 1000),
        # RFC 9110, 5.6.1.2: a recipient takes empty elements of a list, and ignores them.
        ("bytes=0-9,", 0, 10),
        ("bytes=,0-9", 0, 10),
        ("bytes= , 0-9 ,\t, ", 0, 10),
    ],
)
def test_one_range_of_bytes_is_that_part(header: str, start: int, stop: int) -> None:
    assert parse_ranges(header, SIZE) == (ByteRange(start, stop),)


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        ("bytes=0-9,100-109", [(0, 10), (100, 110)]),
        ("bytes=0-9, 100-109 ,,-1", [(0, 10), (100, 110), (999, 1000)]),
        # The order is the client's, and neighbours stay apart: podman counts the parts.
        ("bytes=100-109,0-9,10-19", [(100, 110), (0, 10), (10, 20)]),
        ("bytes=0-499,500-", [(0, 500), (500, 1000)]),
        # What lies after the end is left out while anything else is there (RFC 9110, 14.1.2).
        ("bytes=0-9,1000-1001,20-29,-0", [(0, 10), (20, 30)]),
        ("bytes=1000-,0-9", [(0, 10)]),
        ("bytes=0-9,5-14", [(0, 10), (5, 15)]),
    ],
)
def test_several_ranges_are_those_parts_in_their_order(header: str, parts: list[tuple[int, int]]) -> None:
    assert parse_ranges(header, SIZE) == tuple(ByteRange(*part) for part in parts)


def test_ranges_that_are_more_than_the_whole_or_too_many_are_the_whole() -> None:
    """RFC 9110, 14.2 and 17.15: such a header may be ignored."""
    assert parse_ranges("bytes=0-,0-0", SIZE) == ()
    assert parse_ranges("bytes=0-,0-,0-", SIZE) == ()
    many = ",".join(f"{2 * n}-{2 * n}" for n in range(MOST_RANGES))
    assert len(parse_ranges(f"bytes={many}", 10**6)) == MOST_RANGES
    assert parse_ranges(f"bytes={many},9999-9999", 10**6) == ()


@pytest.mark.parametrize(
    "header",
    [None, "", *NOT_RANGES.split()],
)
def test_what_is_no_range_of_bytes_is_the_whole(header: str | None) -> None:
    assert parse_ranges(header, SIZE) == ()


@pytest.mark.parametrize(
    "header",
    [
        "bytes=1000-",
        "bytes=1000-1001",
        "bytes=-0",
        "bytes=5-3",
        "bytes=" + "9" * 5000 + "-",
        "bytes=1000-,1001-,-0",
        "bytes=0-9,5-3",
    ],
)
def test_a_range_with_nothing_in_it_is_an_error_that_knows_the_size(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        parse_ranges(header, SIZE)
    assert caught.value.size == SIZE


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=5-9", "bytes=-1", "bytes=-0"])
def test_any_range_of_nothing_is_the_whole_of_it(header: str) -> None:
    assert parse_ranges(header, 0) == ()


@given(st.integers(1, 10**15), st.data())
def test_a_range_inside_is_given_back_exactly(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(start, size - 1))
    assert parse_ranges(f"bytes={start}-{last}", size) == (ByteRange(start, last + 1),)
    assert parse_ranges(f"bytes={start}-", size) == (ByteRange(start, size),)
    assert parse_ranges(f"bytes=-{size - start}", size) == (ByteRange(start, size),)


@given(st.text() | st.text("0123456789-,"), st.integers(0, 10))
def test_any_header_at_all_gives_parts_the_whole_or_the_error(header: str, size: int) -> None:
    for text in (header, f"bytes={header}"):
        try:
            parts = parse_ranges(text, size)
        except RangeNotSatisfiable:
            continue
        assert all(0 <= part.start < part.stop <= size for part in parts)
        assert sum(part.size for part in parts) <= size


def test_content_range_counts_the_last_byte_in() -> None:
    assert ByteRange(0, 500).content_range(SIZE) == "bytes 0-499/1000"


def test_a_range_holds_only_for_the_same_content() -> None:
    assert if_range_holds(None, '"a"')
    assert if_range_holds('"a"', '"a"')
    assert not if_range_holds('"b"', '"a"')
    assert not if_range_holds('W/"a"', '"a"')
    assert not if_range_holds("Sat, 29 Oct 1994 19:43:31 GMT", '"a"')


def test_content_that_the_client_has_is_not_sent_again() -> None:
    assert if_none_match_holds(None, '"a"')
    assert if_none_match_holds('"b", "c"', '"a"')
    assert if_none_match_holds('"xa"', '"a"')
    assert not if_none_match_holds('"a"', '"a"')
    assert not if_none_match_holds('"b","a"', '"a"')
    assert not if_none_match_holds('W/"a"', '"a"')
    assert not if_none_match_holds(" * ", '"a"')
