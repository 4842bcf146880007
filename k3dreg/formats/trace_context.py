"""Parse the `traceparent` header, which names the trace that a request is part of (W3C Trace Context, level 1, 3.2)."""

from __future__ import annotations

import re

# version "-" trace-id "-" parent-id "-" trace-flags; later versions may add more after another "-".
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


def trace_id_of(traceparent: str | None) -> str:
    """Return the trace's ID, 32 hex digits; "" for a missing or invalid header, which the specification ignores."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    if match is None:
        return ""
    version, trace, parent, more = match.groups()
    if version == "ff" or (version == "00" and more) or not trace.strip("0") or not parent.strip("0"):
        return ""
    return trace
