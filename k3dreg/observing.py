"""Telling an observer of work that begins and ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from k3dreg.interfaces import IObserver
from k3dreg.model.activity import Activity, RequestReport

# How work that was cancelled counts: no error class has this name.
CANCELLED = "Cancelled"


@implementer(IObserver)
class Nobody:
    """An observer that does not look."""

    def began(self, activity: Activity) -> None:
        """See `IObserver`."""

    def ended(self, activity: Activity, seconds: float, refusal: str) -> None:
        """See `IObserver`."""

    def answered(self, report: RequestReport) -> None:
        """See `IObserver`."""


NOBODY = Nobody()


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
