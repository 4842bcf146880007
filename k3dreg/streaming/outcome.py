"""A result that several wait for, each on their own Deferred."""

from __future__ import annotations

from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class Outcome(Generic[T]):
    """Set once, to a value or a failure; waited for by any number, before or after.

    A waiter that is cancelled is forgotten and disturbs nobody else.  A failure nobody waited for is nobody's error.
    """

    def __init__(self) -> None:
        self._waiting: list[Deferred[T]] = []
        self._value: list[T] = []
        self._failure: Failure | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is a value or a failure already."""
        return bool(self._value) or self._failure is not None

    def wait(self) -> Deferred[T]:
        """A Deferred of the waiter's own, to cancel as he likes."""
        waiter: Deferred[T] = Deferred(self._forget)
        if self._failure is not None:
            waiter.errback(self._failure)
        elif self._value:
            waiter.callback(self._value[0])
        else:
            self._waiting.append(waiter)
        return waiter

    def succeed(self, value: T) -> None:
        """Set the value.  Ignored when the outcome is set already."""
        if not self.is_set:
            self._value.append(value)
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                if not waiter.called:  # an earlier waiter's callbacks may have cancelled this one
                    waiter.callback(value)

    def fail(self, error: BaseException) -> None:
        """Set a failure: every waiter's own, with the same exception.  Ignored when the outcome is set already."""
        if not self.is_set:
            self._failure = Failure(error)
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                if not waiter.called:
                    waiter.errback(Failure(error))

    def _forget(self, waiter: Deferred[T]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
