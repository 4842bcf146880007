"""Targets of requests and their hosts, against RFC 9112's own words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k3dreg.oci.errors import BadRequest
from k3dreg.oci.request_target import resolve_target

V11 = b"HTTP/1.1"


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        (b"/v2/?n=1", b"h:5000", (b"/v2/?n=1", b"h:5000")),
        (b"*", b"h", (b"*", b"h")),
        (b"/v2/http://x", b"", (b"/v2/http://x", b"")),
        (b"http://h:80/v2/?n=http://y/", b"other", (b"/v2/?n=http://y/", b"h:80")),
        (b"HTTPS://[::1]:5000/v2/", b"other", (b"/v2/", b"[::1]:5000")),
        (b"http://h", b"h", (b"/", b"h")),
        (b"http://h?a=/v2/", b"h", (b"/?a=/v2/", b"h")),
        (b"http://h//v2/", b"h", (b"//v2/", b"h")),
    ],
)
def test_the_path_and_the_host(target: bytes, host: bytes, expected: tuple[bytes, bytes]) -> None:
    assert resolve_target(target, [host], V11) == expected


def test_an_old_client_needs_no_host() -> None:
    assert resolve_target(b"/", [], b"HTTP/1.0") == (b"/", b"")
    for hosts, version in ([], V11), ([b"a", b"a"], V11), ([b"a", b"b"], b"HTTP/1.0"):
        with pytest.raises(BadRequest):
            resolve_target(b"/", hosts, version)


@pytest.mark.parametrize("host", [b"a b", b"a/b", b"me@a", b"a:b", b"a:1:2", b"[::1", b"::1", b"\xff", b"a%zz", b"a#b"])
def test_what_is_no_host_is_refused_in_either_place(host: bytes) -> None:
    with pytest.raises(BadRequest):
        resolve_target(b"/", [host], V11)
    with pytest.raises(BadRequest):
        resolve_target(b"http://" + host.replace(b"/", b"@") + b"/v2/", [b"a"], V11)


@pytest.mark.parametrize(
    "target", [b"", b"v2/", b"h:5000", b"http:///v2/", b"http://:80/", b"ftp://h/v2/", b"http:/v2/"]
)
def test_what_is_neither_a_path_nor_a_url_is_refused(target: bytes) -> None:
    with pytest.raises(BadRequest):
        resolve_target(target, [b"h"], V11)


@given(st.binary(), st.lists(st.binary(), max_size=2), st.sampled_from([V11, b"HTTP/1.0", b""]))
def test_any_bytes_give_a_path_or_the_error(target: bytes, hosts: list[bytes], version: bytes) -> None:
    for each in target, b"http://" + target:
        try:
            path, _ = resolve_target(each, hosts, version)
        except BadRequest:
            continue
        assert path == b"*" or path.startswith(b"/")
