"""How long a client waits for the head of an answer, by its User-Agent."""

from __future__ import annotations

import re

# Seconds.  containerd 2.3 and later wait 30 s for the head of an answer (`ResponseHeaderTimeout` in its
# `core/remotes/docker/registry.go`), and then take the mirror for broken.  This leaves time for a machine that is busy
# with the very pull that the client waits for.
_SHORT = 18.0
# Of more digits `int` may refuse to make a number.
_CONTAINERD = re.compile(r"containerd/v?([0-9]{1,4})\.([0-9]{1,4})(?![0-9])")
# The first containerd that gives up waiting for the head of an answer (its `core/remotes/docker/registry.go`).
_FIRST_IMPATIENT = (2, 3)
# Seconds.  Earlier ones wait for as long as it takes, but end a whole pull after five minutes without a byte.
_LONG = 240.0


def deadline_of(user_agent: str | None) -> float:
    """Return the seconds within which an answer to this client must begin.

    A client that is not known to wait for long is taken for one that does not.

    With an answer of "not yet" a node goes to the image's own registry, and downloads what Docker is downloading; so
    where there is no need to hurry the answer waits for Docker.
    """
    match = _CONTAINERD.match(user_agent or "")
    if match is None:
        return _SHORT
    return _SHORT if (int(match[1]), int(match[2])) >= _FIRST_IMPATIENT else _LONG
