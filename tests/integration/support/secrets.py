"""Where secrets must not be."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from tests.integration.support.daemon import Daemon
from tests.integration.support.private import request

# What a daemon shows to everybody.
_PAGES = ("/", "/metrics", "/healthz", "/readyz", "/v2/_catalog")


def assert_nowhere(secrets: Iterable[str], daemon: Daemon, directory: Path, *bodies: bytes) -> None:
    """None of them is in the log, on a page, in a file below the directory (state and log), or in these answers.

    Nor is any in one of the ways in which secrets are written on the wire.
    """
    places = {"the log": daemon.log().encode()}
    places |= {path: request(daemon.host, "GET", path)[1] for path in _PAGES}
    places |= {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    places |= {f"answer {number}": body for number, body in enumerate(bodies)}
    for secret in secrets:
        for form in (secret, quote(secret, safe=""), *_encoded(secret)):
            for place, text in places.items():
                assert form.encode() not in text, f"{place} has {form!r}"


def _encoded(secret: str) -> list[str]:
    """As it looks within base64, whatever comes before it: three alignments, without the ends that mix with others."""
    data = secret.encode()
    found = []
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data).decode().rstrip("=")
        found.append(encoded[(4 if before else 0) : -2])
    return [text for text in found if len(text) > 5]
