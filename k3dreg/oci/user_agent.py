"""The daemon's User-Agent, with an ID of the process to detect pulls that loop back to k3dreg.

Docker may use k3dreg as its mirror (`registry-mirrors`).  Then Docker requests from k3dreg what k3dreg made it pull,
and both would wait for each other.  Docker's `User-Agent` for registries ends with that of the client that requested
the pull, as `UpstreamClient(…)` (tried with 20.10, 26.1 and 28.5, both image stores).  A registry that k3dreg asks
itself may be k3dreg, too, by a name that it does not know for its own.
"""

from __future__ import annotations

import secrets

from k3dreg import __version__

# Random for each process, because the Docker of another k3dreg may use this one as its mirror.
_INSTANCE = f"instance/{secrets.token_hex(6)}"

# Sent in requests to the engine and to registries (RFC 9110, 10.1.5).
USER_AGENT = f"k3dreg/{__version__} {_INSTANCE}"


def is_on_our_behalf(user_agent: str | None) -> bool:
    """Return whether a request with this User-Agent is this daemon's, or an engine's that pulls because of it."""
    return _INSTANCE in (user_agent or "")
