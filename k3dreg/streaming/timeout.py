"""Waiting for something, but not for longer than a client does."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime

from k3dreg.oci.errors import NotYet

T = TypeVar("T")


async def within(seconds: float, clock: IReactorTime, work: Coroutine[Deferred[Any], Any, T], *, after: float) -> T:
    """What `work` gives, if it does so in time.

    Else `work` is cancelled, which ends this caller's part of it only, and `NotYet` is raised: ask again `after`
    seconds.  Cancelling cancels `work`.
    """

    waiting = Deferred.fromCoroutine(work).addTimeout(seconds, clock)
    try:
        return await waiting
    except TimedOut:
        raise NotYet(f"it takes longer than {seconds:.0f} s and goes on in k3dreg: ask again", after=after) from None
