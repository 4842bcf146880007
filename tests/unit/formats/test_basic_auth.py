"""The Basic credentials that a client sends."""

from __future__ import annotations

import base64

import pytest

from k3dreg.formats.basic_auth import BasicAuth


def basic(text: bytes) -> str:
    return base64.b64encode(text).decode()


@pytest.mark.parametrize("header", [f"Basic {basic(b'me:se:cret')}", f"basic   {basic(b'me:se:cret')} "])
def test_basic_credentials_are_read(header: str) -> None:
    assert BasicAuth.from_header(header) == BasicAuth("me", "se:cret")


@pytest.mark.parametrize(
    "header", [None, "", "Basic", "Basic !!!", "Basic bWU", "Bearer abc", f"Bearer {basic(b'a:b')}"]
)
def test_anything_else_is_no_credentials(header: str | None) -> None:
    assert BasicAuth.from_header(header) is None


@pytest.mark.parametrize("text", [b"no-colon", b":password-alone", b":", b"\xff\xfe:x"])
def test_half_credentials_and_what_is_no_text_are_none(text: bytes) -> None:
    assert BasicAuth.from_header(f"Basic {basic(text)}") is None
