"""What is under way and what has ended lately, for the status page."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

from k3dreg.reporting.activity import Activity, RequestReport
from k3dreg.reporting.observer import IObserver
from k3dreg.status.overview import Live, Running
from k3dreg.status.pull_tally import Tally

# Requests shown on the page: a screen or two; a pull of an image makes some ten.
_RECENT = 50
# A herd of nodes may have thousands of bodies under way; a page of all of them helps nobody.
_RUNNING = 50


class RecentRequests:
    """Remembers what it is told, and forgets what is old."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._running: dict[Activity, None] = {}
        self._recent: deque[RequestReport] = deque(maxlen=_RECENT)
        self._tally = Tally()

    def live(self) -> Live:
        """As it is now."""
        now = self._clock.seconds()
        running = tuple(
            Running(each.kind, each.subject, now - each.began, each.progress(), each.waiters())
            for each in list(self._running)[:_RUNNING]
        )
        return Live(running, tuple(reversed(self._recent)), self._tally.saved())

    def began(self, activity: Activity) -> None:
        """See `IObserver`."""
        self._running[activity] = None
        self._tally.began(activity)

    def ended(self, activity: Activity, seconds: float, refusal: str) -> None:
        """See `IObserver`."""
        self._running.pop(activity, None)
        self._tally.ended(activity, refusal)

    def answered(self, report: RequestReport) -> None:
        """See `IObserver`."""
        if report.route in ("page", "health", "metrics") or (report.quiet and report.status < 400):
            return
        self._recent.append(report)
        self._tally.answered(report)


class Observers:
    """Several as one."""

    def __init__(self, observers: Sequence[IObserver]) -> None:
        self._observers = observers

    def began(self, activity: Activity) -> None:
        """See `IObserver`."""
        for observer in self._observers:
            observer.began(activity)

    def ended(self, activity: Activity, seconds: float, refusal: str) -> None:
        """See `IObserver`."""
        for observer in self._observers:
            observer.ended(activity, seconds, refusal)

    def answered(self, report: RequestReport) -> None:
        """See `IObserver`."""
        for observer in self._observers:
            observer.answered(report)
