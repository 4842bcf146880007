"""Tests of k3dreg.formats.json_stream."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k3dreg.formats.json_stream import JsonObjects
from k3dreg.oci.errors import EngineError

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(['"', "\\", "{", "}", '\\"{']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
_OBJECTS = st.lists(st.dictionaries(st.text(max_size=6), _VALUES, max_size=4), max_size=6)


@given(_OBJECTS, st.sampled_from(["", "\r\n", "\n", " \t\r\n"]), st.booleans(), st.data())
def test_objects_come_out_as_they_went_in_wherever_the_bytes_are_cut(
    objects: list[dict[str, object]], separator: str, ascii_only: bool, data: st.DataObject
) -> None:
    stream = separator.join(json.dumps(o, ensure_ascii=ascii_only) for o in objects).encode("utf-8", "surrogatepass")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    parser = JsonObjects()
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += parser.feed(stream[start:stop])
    parser.close()
    assert found == objects


@given(_OBJECTS)
def test_one_byte_at_a_time_gives_the_same(objects: list[dict[str, object]]) -> None:
    parser = JsonObjects()
    found = []
    for byte in b"\r\n".join(json.dumps(o).encode() for o in objects):
        found += parser.feed(bytes([byte]))
    assert found == objects


def test_an_object_comes_out_with_its_last_byte_and_not_before() -> None:
    parser = JsonObjects()
    assert parser.feed(b'{"a": "}') == []
    assert parser.feed(b'"') == []
    assert parser.feed(b"}{") == [{"a": "}"}]


@pytest.mark.parametrize("cut", [b"{", b'{"a', b'{"a": "\\', b'{"a": {}'])
def test_a_stream_that_ends_inside_an_object_is_an_error(cut: bytes) -> None:
    parser = JsonObjects()
    parser.feed(cut)
    with pytest.raises(EngineError):
        parser.close()


@pytest.mark.parametrize("garbage", [b"<html>", b"[]", b'"text"', b"3", b"{a: 1}", b'{"a": 1}}', b"{]}", b"\xff"])
def test_what_is_not_made_of_json_objects_is_an_error(garbage: bytes) -> None:
    with pytest.raises(EngineError):
        JsonObjects().feed(garbage)


def test_an_object_that_does_not_end_is_given_up_at_the_limit() -> None:
    parser = JsonObjects(limit=100)
    parser.feed(b'{"a": "' + b"x" * 90)
    with pytest.raises(EngineError):
        parser.feed(b"x" * 10)


def test_an_object_above_the_limit_is_an_error_even_when_it_comes_at_once() -> None:
    with pytest.raises(EngineError):
        JsonObjects(limit=100).feed(b'{"a": "' + b"x" * 100 + b'"}')


def test_many_small_objects_at_once_are_not_held_against_the_limit() -> None:
    assert len(JsonObjects(limit=100).feed(b'{"a": 1}\r\n' * 1000)) == 1000


def test_deep_nesting_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(EngineError):
        JsonObjects().feed(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
