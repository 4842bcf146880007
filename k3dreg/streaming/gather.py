"""Run several coroutines at once."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList

T = TypeVar("T")


async def all_of(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run the coroutines at once, and return their results in order.

    Waits for all of them even if one fails; then raises the error of the first, in that order, that failed.
    Cancelling cancels all of them.
    """
    running = [Deferred.fromCoroutine(coroutine) for coroutine in coroutines]
    ended: list[tuple[bool, Any]] = await DeferredList(running, consumeErrors=True)
    for succeeded, result in ended:
        if not succeeded:
            raise result.value
    return [result for _, result in ended]
