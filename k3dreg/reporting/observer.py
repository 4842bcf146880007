"""The interface of observers, which are told of work that begins and ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime

from k3dreg.reporting.activity import Activity, ContentRequest, RequestReport


class IObserver(Protocol):
    """Receives reports of work and requests.

    All methods are called in the reactor's thread.  They must return at once and raise nothing.
    """

    def began(self, activity: Activity) -> None:
        """Note that work has begun.  `ended` is called with the same object when it ends."""

    def ended(self, activity: Activity, seconds: float, refusal: str) -> None:
        """Note that work has ended after `seconds`.

        `refusal` is the class name of the error that it failed with, `CANCELLED`, or "" if it succeeded.
        """

    def asked(self, request: ContentRequest) -> None:
        """Note that a request for content begins.  `answered` is called when it has ended."""

    def answered(self, report: RequestReport) -> None:
        """Note that a request has ended, whether it succeeded or not."""


# The `refusal` of work that was cancelled.  No error class has this name.
CANCELLED = "Cancelled"


class NullObserver:
    """An observer that ignores all reports."""

    def began(self, activity: Activity) -> None:
        """Do nothing."""

    def ended(self, activity: Activity, seconds: float, refusal: str) -> None:
        """Do nothing."""

    def asked(self, request: ContentRequest) -> None:
        """Do nothing."""

    def answered(self, report: RequestReport) -> None:
        """Do nothing."""


NULL_OBSERVER = NullObserver()


@contextmanager
def observed(observer: IObserver, activity: Activity, clock: IReactorTime) -> Iterator[None]:
    """Tell `observer` when the `with` block begins and ends, also if it raises or is cancelled."""
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
