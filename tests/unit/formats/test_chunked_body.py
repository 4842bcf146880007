"""Chunked bodies, cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k3dreg.formats.chunked_body import ChunkedDecoder
from k3dreg.oci.errors import BadRequest


def decode(*pieces: bytes) -> tuple[bytes, bytes | None]:
    """The body, and what came after it; None when it has not ended."""
    body, after = bytearray(), list[bytes]()
    decoder = ChunkedDecoder(body.extend, after.append)
    for piece in pieces:
        if after:
            after.append(piece)
        else:
            decoder.dataReceived(piece)
    return bytes(body), b"".join(after) if after else None


def encode(chunks: list[bytes], trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks if c) + b"0\r\n" + trailer + b"\r\n"


@given(st.lists(st.binary(max_size=40)), st.sampled_from([b"", b"A: b\r\nC: d\r\n"]), st.binary(max_size=20), st.data())
def test_any_cuts_give_the_same_body(chunks: list[bytes], trailer: bytes, after: bytes, data: st.DataObject) -> None:
    whole = encode(chunks, trailer) + after
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert decode(*pieces) == (b"".join(chunks), after)
    assert decode(*(bytes([byte]) for byte in whole)) == (b"".join(chunks), after)


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1), st.data())
def test_a_body_that_was_cut_off_has_not_ended(chunks: list[bytes], data: st.DataObject) -> None:
    whole = encode(chunks)
    stop = data.draw(st.integers(0, len(whole) - 1))
    body, after = decode(whole[:stop])
    assert after is None
    assert b"".join(chunks).startswith(body)


@pytest.mark.parametrize("size", [b"5", b"05", b"5;a=b", b"5 ; a", b"0000000000000005", b'5;a="\xff"'])
def test_sizes_and_extensions(size: bytes) -> None:
    assert decode(size + b"\r\nhello\r\n0;x\r\n\r\n") == (b"hello", b"")


@pytest.mark.parametrize(
    "bad",
    [
        b"\r\n", b"x\r\n", b"-5\r\nhello\r\n", b"+5\r\n", b"0x5\r\n", b" 5\r\n", b"5_0\r\n", b"5\nhello\r\n",
        b"5\r\nhello0\r\n", b"5\r\nhello\n0\r\n", b"5\r\nhelloXX", b"5;\x00\r\n", b"5;\r\r\n", b"1" * 17 + b"\r\n",
        b"5;" + b"x" * 2000, b"5" * 2000, b"0\r\n" + (b"A: " + b"b" * 900 + b"\r\n") * 20, b"0\r\n" + b"x" * 2000,
        b"5\r\nhello\r\n\r\n", b"0\r\nA: b\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_chunked_body_is_refused(bad: bytes) -> None:
    with pytest.raises(BadRequest):
        decode(bad + b"\r\n")
    with pytest.raises(BadRequest):
        decode(*(bytes([byte]) for byte in bad + b"\r\n"))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_body_or_refused(data: bytes) -> None:
    try:
        decode(data)
    except BadRequest:
        return


def test_a_large_chunk_is_passed_on_as_it_came() -> None:
    pieces: list[bytes | memoryview] = []
    decoder = ChunkedDecoder(pieces.append, lambda rest: None)
    decoder.dataReceived(b"100000\r\n")
    data = bytes(65536)
    for _ in range(16):
        decoder.dataReceived(data)
    assert all(piece is data for piece in pieces)
