"""The work under way and the requests that have ended last, for the status page."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

from k3dreg.reporting.activity import Activity, RequestReport
from k3dreg.reporting.observer import IObserver
from k3dreg.status.overview import Live, Running
from k3dreg.status.pull_tally import Tally

# Requests shown on the page, which fill a screen or two.  A pull of an image has some ten requests.
_RECENT = 50
# Work shown on the page.  Many nodes may have thousands of transfers under way, too many to read.
_RUNNING = 50


class RecentRequests:
    """An observer that remembers the work under way and the last requests."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._running: dict[Activity, None] = {}
        self._recent: deque[RequestReport] = deque(maxlen=_RECENT)
        self._tally = Tally()

    def live(self) -> Live:
        """Return the work under way, the last requests, and the sums since the start."""
        now = self._clock.seconds()
        running = tuple(
            Running(each.kind, each.subject, now - each.began, each.progress(), each.waiters())
            for each in list(self._running)[:_RUNNING]
        )
        return Live(running, tuple(reversed(self._recent)), self._tally.saved())

    def began(self, activity: Activity) -> None:
        """Add the work to those under way."""
        self._running[activity] = None
        self._tally.began(activity)

    def ended(self, activity: Activity, seconds: float, refusal: str) -> None:
        """Remove the work from those under way."""
        self._running.pop(activity, None)
        self._tally.ended(activity, refusal)

    def answered(self, report: RequestReport) -> None:
        """Remember the request, unless it is for a page about the daemon, or is quiet and succeeded."""
        if report.route in ("page", "health", "metrics") or (report.quiet and report.status < 400):
            return
        self._recent.append(report)
        self._tally.answered(report)


class Observers:
    """An observer that passes each report to several others."""

    def __init__(self, observers: Sequence[IObserver]) -> None:
        self._observers = observers

    def began(self, activity: Activity) -> None:
        """Pass it to all observers, in order."""
        for observer in self._observers:
            observer.began(activity)

    def ended(self, activity: Activity, seconds: float, refusal: str) -> None:
        """Pass it to all observers, in order."""
        for observer in self._observers:
            observer.ended(activity, seconds, refusal)

    def answered(self, report: RequestReport) -> None:
        """Pass it to all observers, in order."""
        for observer in self._observers:
            observer.answered(report)
