"""Who this daemon is, so that it knows itself when it meets itself.

Docker may have k3dreg for its own mirror (`registry-mirrors`).  A pull that k3dreg asked Docker for then comes back,
and both would wait for each other.  Docker tells a registry for whom it asks: its `User-Agent` ends with that of its
own client, as `UpstreamClient(…)` (tried on 20.10, 26.1 and 28.5, both image stores).
"""

from __future__ import annotations

import secrets

from k3dreg import __version__

# Another k3dreg's Docker may well have this one for its mirror; so each is told from all others.
_INSTANCE = f"instance/{secrets.token_hex(6)}"

# What the engine is told (RFC 9110, 10.1.5).
USER_AGENT = f"k3dreg/{__version__} {_INSTANCE}"


def is_on_our_behalf(user_agent: str | None) -> bool:
    """Whether a client says that it is an engine, which asks because this very daemon asked it to."""
    _, found, client = (user_agent or "").partition("UpstreamClient(")
    return bool(found) and _INSTANCE in client
