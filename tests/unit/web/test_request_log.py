"""What the log says of a request."""

from __future__ import annotations

import pytest

from k3dreg.oci.routes import parse_target
from k3dreg.web.request_log import name_of, printable, quoted

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/v2/", "/v2/"),
        ("/v2/_catalog", "/v2/_catalog"),
        ("/v2/nginx/manifests/1.27?ns=docker.io", "docker.io/library/nginx:1.27"),
        (f"/v2/x/manifests/sha256:{HEX}", f"x@sha256:{HEX}"),
        (f"/v2/nginx/blobs/sha256:{HEX}?ns=docker.io", "docker.io/library/nginx blob sha256:0123456789ab"),
        (f"/v2/x/referrers/sha256:{HEX}", "x referrers of sha256:0123456789ab"),
        ("/v2/x/tags/list", "x tags"),
        ("/v2/x/blobs/uploads/", "x upload"),
        ("/v2/x/blobs/uploads/abc", "x upload"),
    ],
)
def test_things_are_called_what_people_call_them(target: str, name: str) -> None:
    assert name_of(parse_target(target.encode())[0]) == name


def test_nothing_can_end_a_line_or_move_a_cursor() -> None:
    assert printable("a\nb\rc\x1b[2Jd\x00\u202e") == "a\\nb\\rc\\x1b[2Jd\\x00\\u202e"
    assert printable("müde {braces} %s") == "müde {braces} %s"


def test_what_did_not_parse_is_quoted_and_cut() -> None:
    assert quoted(b"/v2/\x1b\xff") == "'/v2/\\x1b\\\\xff'"
    assert len(quoted(b"x" * 16000)) == 202
