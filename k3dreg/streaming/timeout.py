"""Wait for a result no longer than a client waits."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime

from k3dreg.oci.errors import NotYet

T = TypeVar("T")


async def within(seconds: float, clock: IReactorTime, work: Coroutine[Deferred[Any], Any, T], *, after: float) -> T:
    """Return the result of `work` if it ends within `seconds`.

    Otherwise cancel `work` and raise `NotYet`, which asks the client to retry after `after` seconds.  The error says
    that the work goes on, so `work` must be a wait for shared work, such as a single flight.  Cancelling cancels
    `work`.
    """

    waiting = Deferred.fromCoroutine(work).addTimeout(seconds, clock)
    try:
        return await waiting
    except TimedOut:
        raise NotYet(f"it takes longer than {seconds:.0f} s and goes on in k3dreg: ask again", after=after) from None
