"""Results that several callers wait for, each on a Deferred of its own."""

from __future__ import annotations

from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

V = TypeVar("V")


class Waiters(Generic[V]):
    """The Deferreds of all callers that wait for one result."""

    def __init__(self) -> None:
        self._deferreds: list[Deferred[V]] = []

    def __len__(self) -> int:
        return len(self._deferreds)

    def add(self) -> Deferred[V]:
        """Return a Deferred that fires with the result.  Cancelling it removes it and does not affect the others."""
        waiter: Deferred[V] = Deferred(self._remove)
        self._deferreds.append(waiter)
        return waiter

    def deliver(self, result: V | Failure) -> None:
        """Fire all Deferreds with `result`, in the order in which they were added.

        They leave the list one at a time, because a callback of one may cancel another.
        """
        while self._deferreds:
            waiter = self._deferreds.pop(0)
            if isinstance(result, Failure):
                # A new Failure for each, because errbacks change the Failure that they get.
                waiter.errback(Failure(result.value, result.type, result.tb))
            else:
                waiter.callback(result)

    def _remove(self, waiter: Deferred[V]) -> None:
        if waiter in self._deferreds:
            self._deferreds.remove(waiter)


class Outcome(Generic[V]):
    """A result that is set once, to a value or a failure, and that any number of callers wait for, before or after.

    A failure that no caller waits for is dropped without a log line.
    """

    def __init__(self) -> None:
        self._waiters: Waiters[V] = Waiters()
        self._result: list[V | Failure] = []

    @property
    def is_set(self) -> bool:
        """Return whether a value or a failure was set."""
        return bool(self._result)

    @property
    def waiting(self) -> int:
        """Return how many callers wait."""
        return len(self._waiters)

    def wait(self) -> Deferred[V]:
        """Return a new Deferred that fires with the result.  Cancelling it does not affect other callers."""
        if not self._result:
            return self._waiters.add()
        result = self._result[0]
        return fail(result.value) if isinstance(result, Failure) else succeed(result)

    def succeed(self, value: V) -> None:
        """Set the value.  Ignored if a result was set before."""
        self._set(value)

    def fail(self, error: BaseException) -> None:
        """Set a failure: each caller gets its own Failure of `error`.  Ignored if a result was set before."""
        self._set(Failure(error))

    def _set(self, result: V | Failure) -> None:
        if not self._result:
            self._result.append(result)
            self._waiters.deliver(result)
