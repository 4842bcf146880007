"""The addresses that a registry's name leads to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IHostResolution, IResolutionReceiver
from zope.interface import implementer

# Seconds.  Docker resolves the name itself after this, and says what is wrong with it.
_PATIENCE = 3.0


def make_resolve(reactor: Any) -> Callable[[str], Awaitable[Sequence[str]]]:
    """Return a function that gives the IP addresses of a name.

    It gives none for a name that does not resolve, or not within three seconds.
    """

    async def resolve(name: str) -> Sequence[str]:
        receiver = _Receiver()
        reactor.nameResolver.resolveHostName(receiver, name)
        receiver.done.addTimeout(_PATIENCE, reactor, lambda result, seconds: None)
        await receiver.done
        return tuple(receiver.found)

    return resolve


@implementer(IResolutionReceiver)
class _Receiver:
    """Collects addresses; `done` fires after the last."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.done: Deferred[None] = Deferred()

    def resolutionBegan(self, resolution: IHostResolution) -> None:
        pass

    def addressResolved(self, address: IAddress) -> None:
        self.found.append(str(getattr(address, "host", "")))

    def resolutionComplete(self) -> None:
        if not self.done.called:
            self.done.callback(None)
