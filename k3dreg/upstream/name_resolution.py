"""Resolve a registry's name to addresses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IHostResolution, IResolutionReceiver
from zope.interface import implementer

# Seconds after which k3dreg goes on without addresses.  Docker then resolves the name itself, and reports its error.
_MAX_WAIT = 3.0


def make_resolve(reactor: Any) -> Callable[[str], Awaitable[Sequence[str]]]:
    """Return a function that returns the IP addresses of a name.

    The result is empty for a name that does not resolve within three seconds.
    """

    async def resolve(name: str) -> Sequence[str]:
        receiver = _Receiver()
        reactor.nameResolver.resolveHostName(receiver, name)
        receiver.done.addTimeout(_MAX_WAIT, reactor, lambda result, seconds: None)
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
