"""Access control: decides which requests may read, and which may write."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container
from typing import Protocol

from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.oci.errors import AuthenticationRequired, LoginRequired
from k3dreg.web.answers import Answer

_HOW = "docker login; for a node, --anonymous-pull or credentials in its registry settings"
_ONE_HEADER = (
    "a request carries one user and password, and this one carries k3dreg's: run docker login on "
    "k3dreg's machine, or let nodes pull without a password (--anonymous-pull)"
)


class IUsers(Protocol):
    """The users of this registry and their passwords."""

    async def knows(self, shown: BasicAuth, client: str = "") -> bool:
        """Return whether `shown` is the name and password of a user.  An unknown name takes as long as a known one.

        `client` is the address of the client: clients take turns.  Raises `NotYet` when too many checks wait.
        """


class Access:
    """Decides by its `Authorization` what a request may do, and which credentials go to the image's own registry.

    Without `users`, every client may do everything, and an `Authorization` is for the image's own registry.  With
    `users`, credentials of a user of k3dreg are not passed on, and any other credentials are refused.  With
    `anonymous_pull`, a request that reads is accepted with any credentials, and they are for the image's own registry:
    nodes send a pod's secret here.

    Credentials with the name of a k3dreg user are never passed on to another registry, even with a wrong password: it
    may be one that was valid a moment ago.
    """

    def __init__(
        self, users: IUsers | None = None, *, anonymous_pull: bool = False, own_names: Container[str] = frozenset()
    ) -> None:
        """`own_names` are the names of all users that k3dreg has, or has had since its start."""
        self._own_names = own_names
        self.change(users, anonymous_pull=anonymous_pull)

    def change(self, users: IUsers | None, *, anonymous_pull: bool = False) -> None:
        """Use other users, or none, and another `anonymous_pull` from the next request on."""
        self._users = users
        self._anonymous_pull = anonymous_pull

    @property
    def is_open(self) -> bool:
        """Whether no request needs credentials."""
        return self._users is None

    async def admit(
        self, shown: BasicAuth | None, client: str, *, reading: bool, insist: bool = True
    ) -> BasicAuth | None:
        """Admit a request from the address `client`, and return its credentials for the image's own registry.

        `reading`: the request changes nothing, and is not the one by which a client finds out whether it has to log in.
        `insist`: challenge a client again whose credentials are wrong, as a user can enter others.
        Raises `LoginRequired` for a request that is not admitted, and what `IUsers.knows` raises.
        """
        if self._users is None:
            return self._for_others(shown)
        if shown is not None and await self._users.knows(shown, client):
            return None
        if reading and self._anonymous_pull:
            return self._for_others(shown)
        if shown is None:
            raise LoginRequired("k3dreg asks for a user and a password", advice=_HOW)
        raise LoginRequired("k3dreg does not accept this user and password", challenge=insist, advice=_HOW)

    async def answer(
        self,
        shown: BasicAuth | None,
        client: str,
        *,
        reading: bool,
        insist: bool,
        handle: Callable[[BasicAuth | None], Awaitable[Answer]],
    ) -> Answer:
        """Admit a request and return the answer of `handle`, which is called with what `admit` returned.

        If the image's registry requires credentials, and the client has sent those for k3dreg, the 401 has no
        challenge: the client would send the same credentials again.
        """
        passed_on = await self.admit(shown, client, reading=reading, insist=insist)
        try:
            return await handle(passed_on)
        except AuthenticationRequired as error:
            if not error.challenge or passed_on is shown:
                raise
            raise AuthenticationRequired(str(error), challenge=False, advice=_ONE_HEADER) from error

    def _for_others(self, shown: BasicAuth | None) -> BasicAuth | None:
        return None if shown is not None and shown.username in self._own_names else shown
