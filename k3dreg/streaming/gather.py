"""Several things at once."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList

T = TypeVar("T")


async def all_of(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in order; they run at once.  Waits for all, then raises what the first of them raised.

    Cancelling cancels all.
    """
    running = [Deferred.fromCoroutine(coroutine) for coroutine in coroutines]
    ended: list[tuple[bool, Any]] = await DeferredList(running, consumeErrors=True)
    for succeeded, result in ended:
        if not succeeded:
            raise result.value
    return [result for _, result in ended]
