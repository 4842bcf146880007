"""Find Docker's error messages inside an archive.

`docker save` answers 200 before it starts.  If it fails later, it writes
`{"errorDetail":{"message":...},"error":...}\\r\\n` after the part of the tar that was sent, and ends the body normally
(moby, api/server/router/image, `getImagesGet`).
"""

from __future__ import annotations

import json

from k3dreg.formats.text import one_line

# Bytes of such an object, which has the message twice.  Docker's messages have some hundred bytes.
LONGEST_OBJECT = 16 * 1024
# Characters of a message: it becomes part of a pod's events, which Kubernetes truncates at 1024.
_LONGEST_SHOWN = 400

_BEGINNING = b'{"errorDetail"'


def message_of(data: bytes) -> str | None:
    """Return the message if `data` is an error object, else None.  It is one line of bounded length."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    detail = value.get("errorDetail")
    nested = detail.get("message") if isinstance(detail, dict) else None
    for text in (nested, value.get("error"), value.get("message")):
        if isinstance(text, str) and text.strip():
            return _shown(text)
    return None


def message_at_end(data: bytes) -> str | None:
    """Return the message if `data` ends with an error object, else None."""
    at = data.rfind(_BEGINNING)
    return None if at < 0 else message_of(data[at:])


def _shown(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _LONGEST_SHOWN else line[: _LONGEST_SHOWN - 1] + "…"
