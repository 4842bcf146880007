"""Telling an observer of work that begins and ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime

from k3dreg.reporting.activity import Activity, RequestReport


class IObserver(Protocol):
    """Told of what goes on.  All of it is called in the reactor's thread, is quick and raises nothing."""

    def began(self, activity: Activity) -> None:
        """Something has begun.  `ended` is called with the same object."""

    def ended(self, activity: Activity, seconds: float, refusal: str) -> None:
        """It has ended, after `seconds`; `refusal` is the class of the error it failed with, "" for none."""

    def answered(self, report: RequestReport) -> None:
        """A request has ended, however it did."""


# How work that was cancelled counts: no error class has this name.
CANCELLED = "Cancelled"


class NullObserver:
    """An observer that does not look."""

    def began(self, activity: Activity) -> None:
        """See `IObserver`."""

    def ended(self, activity: Activity, seconds: float, refusal: str) -> None:
        """See `IObserver`."""

    def answered(self, report: RequestReport) -> None:
        """See `IObserver`."""


NULL_OBSERVER = NullObserver()


@contextmanager
def observed(observer: IObserver, activity: Activity, clock: IReactorTime) -> Iterator[None]:
    """Tell `observer` of the work in the `with`, however it ends."""
    observer.began(activity)
    refusal = ""
    try:
        yield
    except CancelledError:
        refusal = CANCELLED
        raise
    except BaseException as error:
        refusal = type(error).__name__
        raise
    finally:
        observer.ended(activity, clock.seconds() - activity.began, refusal)
