"""A result that several wait for, each on their own Deferred."""

from __future__ import annotations

from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

V = TypeVar("V")


class Waiters(Generic[V]):
    """Those who wait for one result, each on a Deferred of his own."""

    def __init__(self) -> None:
        self._deferreds: list[Deferred[V]] = []

    def __len__(self) -> int:
        return len(self._deferreds)

    def add(self) -> Deferred[V]:
        """One more.  Cancelling the Deferred removes it and disturbs nobody else."""
        waiter: Deferred[V] = Deferred(self._remove)
        self._deferreds.append(waiter)
        return waiter

    def deliver(self, result: V | Failure) -> None:
        """Fire them all, in the order in which they came.

        One at a time from the list, because what one waiter does next may be to cancel another.
        """
        while self._deferreds:
            waiter = self._deferreds.pop(0)
            if isinstance(result, Failure):
                # His own, because a Failure is changed by those it passes through.
                waiter.errback(Failure(result.value, result.type, result.tb))
            else:
                waiter.callback(result)

    def _remove(self, waiter: Deferred[V]) -> None:
        if waiter in self._deferreds:
            self._deferreds.remove(waiter)


class Outcome(Generic[V]):
    """Set once, to a value or a failure; waited for by any number, before or after.

    A failure nobody waited for is nobody's error.
    """

    def __init__(self) -> None:
        self._waiters: Waiters[V] = Waiters()
        self._result: list[V | Failure] = []

    @property
    def is_set(self) -> bool:
        """Whether there is a value or a failure already."""
        return bool(self._result)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiters)

    def wait(self) -> Deferred[V]:
        """A Deferred of the waiter's own, to cancel as he likes."""
        if not self._result:
            return self._waiters.add()
        result = self._result[0]
        return fail(result.value) if isinstance(result, Failure) else succeed(result)

    def succeed(self, value: V) -> None:
        """Set the value.  Ignored when the outcome is set already."""
        self._set(value)

    def fail(self, error: BaseException) -> None:
        """Set a failure: every waiter's own, with the same exception.  Ignored when the outcome is set already."""
        self._set(Failure(error))

    def _set(self, result: V | Failure) -> None:
        if not self._result:
            self._result.append(result)
            self._waiters.deliver(result)
