"""The interface of the users of this registry."""

from __future__ import annotations

from typing import Protocol

from k3dreg.formats.basic_auth import BasicAuth


class IUsers(Protocol):
    """Those who may use this registry."""

    async def knows(self, shown: BasicAuth, client: str = "") -> bool:
        """Whether it is the user and password of one of them.  Takes as long for a name that is nobody's.

        `client` is the address it comes from: clients take turns.
        Raises `NotYet` when too many ask at once.
        """
