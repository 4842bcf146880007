"""How long a client waits for the head of a response, by its User-Agent."""

from __future__ import annotations

import re

# Seconds.  containerd 2.3 and later wait 30 s for the head of a response (`ResponseHeaderTimeout` in its
# `core/remotes/docker/registry.go`), and then treat the mirror as broken.  The difference allows for a machine that is
# slow because of the very pull that the client waits for.
_SHORT = 18.0
# The number of digits is limited because `int` raises for numbers of thousands of digits.
_CONTAINERD = re.compile(r"containerd/v?([0-9]{1,4})\.([0-9]{1,4})(?![0-9])")
# The first version of containerd that has this timeout.
_FIRST_WITH_SHORT_WAIT = (2, 3)
# Seconds.  Earlier versions have no such timeout, but cancel a whole pull after five minutes without a byte
# (`image_pull_progress_timeout`).
_LONG = 240.0


def deadline_of(user_agent: str | None) -> float:
    """Return the seconds within which a response to this client must begin.

    An unknown client gets the short time.  A node that gets 503 goes to the image's own registry, and downloads what
    Docker is downloading already, so a client that waits long gets the long time.
    """
    match = _CONTAINERD.match(user_agent or "")
    if match is None:
        return _SHORT
    return _SHORT if (int(match[1]), int(match[2])) >= _FIRST_WITH_SHORT_WAIT else _LONG
