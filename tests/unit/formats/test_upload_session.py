"""Upload sessions: what may come when, and that any order of requests keeps the invariants."""

from __future__ import annotations

import contextlib
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from k3dreg.formats.upload_session import ContentRange, State, UploadSession, parse_content_range, received_range
from k3dreg.oci.errors import K3dregError, SizeNotMatched, TooLarge, UploadInvalid, UploadOutOfOrder, UploadUnknown


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("0-0", 0, 1),
        ("5-9", 5, 10),
        ("bytes 5-9/20", 5, 10),
        ("bytes 5-9/*", 5, 10),
        ("bytes=5-9", 5, 10),
        (" 5-9 ", 5, 10),
    ],
)
def test_a_range_counts_its_last_byte_in(header: str, start: int, stop: int) -> None:
    assert parse_content_range(header) == ContentRange(start, stop)


@pytest.mark.parametrize(
    "header", ["", "5", "-5", "5-", "9-5", "a-b", "0-1,2-3", "-1-2", "0x1-2", "٣-٤", "1" * 20 + "-2", "0--1"]
)
def test_what_is_no_range_is_refused(header: str) -> None:
    with pytest.raises(UploadInvalid):
        parse_content_range(header)


def test_without_the_header_there_is_no_range() -> None:
    assert parse_content_range(None) is None


@pytest.mark.parametrize(("received", "text"), [(0, "0-0"), (1, "0-0"), (2, "0-1"), (1000, "0-999")])
def test_what_was_received_is_told_as_a_range(received: int, text: str) -> None:
    assert received_range(received) == text


def session_with(received: int, limit: int = 1000) -> UploadSession:
    session = UploadSession(limit)
    session.begin(None, None)
    session.add(received)
    session.end()
    return session


def test_chunks_in_order_add_up() -> None:
    session = session_with(0)
    for start in (0, 10, 20):
        session.begin(ContentRange(start, start + 10), 10)
        session.add(4)
        session.add(6)
        session.end()
    session.commit()
    assert (session.received, session.state) == (30, State.COMMITTED)


@pytest.mark.parametrize("start", [0, 9, 11, 10_000])
def test_a_chunk_out_of_order_is_told_where_to_go_on_and_changes_nothing(start: int) -> None:
    session = session_with(10)
    with pytest.raises(UploadOutOfOrder) as caught:
        session.begin(ContentRange(start, start + 5), 5)
    assert (caught.value.received, session.received, session.state) == (10, 10, State.OPEN)


def test_range_and_length_must_agree() -> None:
    with pytest.raises(SizeNotMatched):
        session_with(10).begin(ContentRange(10, 20), 11)


def test_more_bytes_than_the_range_says_are_refused_before_they_are_kept() -> None:
    session = session_with(10)
    session.begin(ContentRange(10, 20), None)
    session.add(10)
    with pytest.raises(SizeNotMatched):
        session.check(1)
    assert session.received == 20


def test_fewer_bytes_than_the_range_says_are_kept_and_told() -> None:
    session = session_with(10)
    session.begin(ContentRange(10, 20), None)
    session.add(3)
    with pytest.raises(SizeNotMatched):
        session.end()
    assert (session.received, session.state) == (13, State.OPEN)


def test_a_lost_request_can_be_taken_up_where_it_broke() -> None:
    session = session_with(0)
    session.begin(ContentRange(0, 100), 100)
    session.add(30)
    session.interrupt()
    session.begin(ContentRange(30, 100), 70)
    session.add(70)
    session.end()
    assert session.received == 100


def test_a_blob_has_a_largest_size() -> None:
    with pytest.raises(TooLarge):
        session_with(0).begin(None, 1001)
    session = session_with(1000)
    session.begin(None, None)
    with pytest.raises(TooLarge):
        session.add(1)


@pytest.mark.parametrize("end", ["commit", "cancel"])
def test_a_session_that_has_ended_is_unknown(end: str) -> None:
    session = session_with(5)
    getattr(session, end)()
    for again in (
        session.commit,
        session.cancel,
        session.end,
        lambda: session.begin(None, None),
        lambda: session.add(1),
    ):
        with pytest.raises(UploadUnknown):
            again()
    assert session.received == 5


def test_nothing_is_committed_under_a_request() -> None:
    session = session_with(5)
    session.begin(None, None)
    with pytest.raises(UploadInvalid):
        session.commit()
    with pytest.raises(UploadInvalid):
        session.begin(None, None)


class AnyOrder(RuleBasedStateMachine):
    """Requests of any kind in any order, against the plainest model: a count of bytes, and whether it is over."""

    LIMIT: ClassVar[int] = 50

    def __init__(self) -> None:
        super().__init__()
        self.session = UploadSession(self.LIMIT)
        self.bytes = 0
        self.ended: State | None = None

    @rule(start=st.none() | st.integers(0, 60), size=st.integers(1, 30), length=st.none() | st.integers(0, 60))
    def begin(self, start: int | None, size: int, length: int | None) -> None:
        asked = None if start is None else ContentRange(start, start + size)
        before = self.session.state
        try:
            self.session.begin(asked, length)
        except K3dregError:
            assert self.session.state is before
        else:
            assert asked is None or asked.start == self.bytes
            assert asked is None or length in (None, size)

    @rule(count=st.integers(0, 30))
    def add(self, count: int) -> None:
        with contextlib.suppress(K3dregError):
            self.session.add(count)
            self.bytes += count

    @rule()
    def end(self) -> None:
        with contextlib.suppress(K3dregError):
            self.session.end()

    @rule()
    def interrupt(self) -> None:
        self.session.interrupt()

    @rule()
    def commit(self) -> None:
        with contextlib.suppress(K3dregError):
            self.session.commit()
            assert self.ended is None
            self.ended = State.COMMITTED

    @rule()
    def cancel(self) -> None:
        with contextlib.suppress(K3dregError):
            self.session.cancel()
            assert self.ended is None
            self.ended = State.CANCELLED

    @invariant()
    def nothing_is_counted_that_was_not_added_and_the_end_is_the_end(self) -> None:
        assert self.session.received == self.bytes <= self.LIMIT
        assert self.session.has_ended == (self.ended is not None)
        if self.ended is not None:
            assert self.session.state is self.ended


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=30)
