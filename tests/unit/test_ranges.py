"""Byte ranges and conditions, against RFC 9110's own words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k3dreg.model.errors import RangeNotSatisfiable
from k3dreg.protocol.ranges import ByteRange, if_none_match_holds, if_range_holds, parse_range

SIZE = 1000
NOT_RANGES = """
    bytes bytes= bytes=- bytes=a-b lines=0-5 bytes=0-1,4-5 bytes=+1-2 bytes=1-2-3 bytes=٣-٤ bytes=0x1-2
    bytes==0-1 0-5
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
    ],
)
def test_one_range_of_bytes_is_that_part(header: str, start: int, stop: int) -> None:
    assert parse_range(header, SIZE) == ByteRange(start, stop)


@pytest.mark.parametrize(
    "header",
    [None, "", *NOT_RANGES.split()],
)
def test_what_is_not_one_range_of_bytes_is_the_whole(header: str | None) -> None:
    assert parse_range(header, SIZE) is None


@pytest.mark.parametrize(
    "header", ["bytes=1000-", "bytes=1000-1001", "bytes=-0", "bytes=5-3", "bytes=" + "9" * 5000 + "-"]
)
def test_a_range_with_nothing_in_it_is_an_error_that_knows_the_size(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        parse_range(header, SIZE)
    assert caught.value.size == SIZE


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=5-9", "bytes=-1", "bytes=-0"])
def test_any_range_of_nothing_is_the_whole_of_it(header: str) -> None:
    assert parse_range(header, 0) is None


@given(st.integers(1, 10**15), st.data())
def test_a_range_inside_is_given_back_exactly(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(start, size - 1))
    assert parse_range(f"bytes={start}-{last}", size) == ByteRange(start, last + 1)
    assert parse_range(f"bytes={start}-", size) == ByteRange(start, size)
    assert parse_range(f"bytes=-{size - start}", size) == ByteRange(start, size)


@given(st.text(), st.integers(0, 10))
def test_any_header_at_all_gives_a_part_the_whole_or_the_error(header: str, size: int) -> None:
    for text in (header, f"bytes={header}"):
        try:
            part = parse_range(text, size)
        except RangeNotSatisfiable:
            continue
        assert part is None or 0 <= part.start < part.stop <= size


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
