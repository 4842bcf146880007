"""The wire format of Protocol Buffers, with examples of its documentation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k3dreg.formats.protobuf import Message, field, integer_field, map_field


def test_the_examples_of_the_documentation() -> None:
    assert integer_field(1, 150) == bytes.fromhex("089601")
    assert field(2, "testing") == bytes.fromhex("120774657374696e67")
    assert field(3, integer_field(1, 150)) == bytes.fromhex("1a03089601")


def test_defaults_are_left_out_but_an_empty_message_is_there() -> None:
    assert field(1, "") == integer_field(1, 0) == map_field(1, {}) == b""
    assert field(1, b"") == bytes.fromhex("0a00")
    assert len(Message(field(1, b"")).messages(1)) == 1


def test_missing_fields_have_their_defaults() -> None:
    message = Message(b"")
    assert (message.text(1), message.texts(1), message.number(1), message.messages(1)) == ("", [], 0, [])
    assert message.message(7).text(1) == ""


def test_the_last_of_several_values_counts_and_unknown_fields_are_skipped() -> None:
    fixed = bytes.fromhex("0d01020304") + bytes.fromhex("110102030405060708")
    message = Message(field(3, "a") + fixed + field(3, "b") + integer_field(9, 1 << 63))
    assert message.text(3) == "b"
    assert message.texts(3) == ["a", "b"]
    assert message.number(9) == 1 << 63


@pytest.mark.parametrize("text", ["08", "0a05", "0a0561", "0b", "08ffffffffffffffffffff", "0d01"])
def test_what_is_no_message(text: str) -> None:
    with pytest.raises(ValueError, match=r"a (field|number)"):
        Message(bytes.fromhex(text))


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1)), st.text(), st.integers(0, 2**64 - 1))
def test_what_was_encoded_is_decoded(entries: dict[str, str], text: str, number: int) -> None:
    message = Message(field(1, text) + integer_field(2, number) + map_field(300, entries))
    assert message.text(1) == text
    assert message.number(2) == number
    assert {each.text(1): each.text(2) for each in message.messages(300)} == entries


@given(st.binary())
def test_no_bytes_do_anything_but_parse_or_raise_value_error(data: bytes) -> None:
    try:
        message = Message(data)
    except ValueError:
        return
    message.number(1)
