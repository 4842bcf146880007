"""The door: who may read, and who may write."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container

from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.oci.errors import AuthenticationRequired, LoginRequired
from k3dreg.web.answers import Answer
from k3dreg.web.users import IUsers

_HOW = "docker login; for a node, --anonymous-pull or credentials in its registry settings"
_ONE_HEADER = (
    "a request carries one user and password, and this one carries k3dreg's: run docker login on "
    "k3dreg's machine, or let nodes pull without a password (--anonymous-pull)"
)


class Access:
    """What a request may do, by the `Authorization` that it brings.

    Without `users` everybody may do everything, and an `Authorization` is for the image's own registry.  With them,
    one that fits is for k3dreg and goes no further; one that does not fit is refused, or, where reading needs none
    (`anonymous_pull`), is for the image's own registry all the same: a node sends a pod's secret here.

    Whatever fits or not: what a client shows with the name of a k3dreg user is never passed on to another registry.
    It may be a password that was right a moment ago.
    """

    def __init__(
        self, users: IUsers | None = None, *, anonymous_pull: bool = False, own_names: Container[str] = frozenset()
    ) -> None:
        """`own_names` are the names of all users there are, and of those there were since the start."""
        self._own_names = own_names
        self.change(users, anonymous_pull=anonymous_pull)

    def change(self, users: IUsers | None, *, anonymous_pull: bool = False) -> None:
        """From the next request on."""
        self._users = users
        self._anonymous_pull = anonymous_pull

    @property
    def is_open(self) -> bool:
        """Whether nobody is asked for anything."""
        return self._users is None

    async def admit(
        self, shown: BasicAuth | None, client: str, *, reading: bool, insist: bool = True
    ) -> BasicAuth | None:
        """Let a request of `client`, an address, in; returns what it brought for the image's own registry.

        `reading`: it changes nothing, and is none by which a client finds out whether it has to log in.  `insist`:
        who has shown something wrong is asked again, as a person can say something else.
        Raises `LoginRequired`, and what `IUsers.knows` raises.
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
        """The answer to a request that is let in: what `handle` gives for what `admit` returned.

        When the image's registry wants credentials and the client has shown those for k3dreg, it is not asked again:
        it would show the same.
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
