"""The interface of the users of this registry."""

from __future__ import annotations

from typing import Protocol

from k3dreg.formats.basic_auth import BasicAuth


class IUsers(Protocol):
    """The users of this registry and their passwords."""

    async def knows(self, shown: BasicAuth, client: str = "") -> bool:
        """Return whether `shown` is the name and password of a user.  An unknown name takes as long as a known one.

        `client` is the address of the client: clients take turns.  Raises `NotYet` when too many checks wait.
        """
