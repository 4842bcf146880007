"""What the daemon does at the moment and did last, for the status page."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from attrs import evolve
from twisted.internet.interfaces import IReactorTime

from k3dreg.oci.reference import split_name
from k3dreg.reporting.activity import Activity, ContentRequest, RequestReport
from k3dreg.reporting.observer import IObserver
from k3dreg.status.nodes import Nodes
from k3dreg.status.overview import Live, NodeCounts, Running
from k3dreg.status.pull_tally import Tally
from k3dreg.status.pulls import Pulls

# Requests shown that belong to no pull, which fill a screen or two.  A push of an image has some twenty requests.
_OTHERS = 50
# Work shown on the page.  Many nodes may have thousands of transfers under way, too many to read.
_RUNNING = 50


class Board:
    """An observer that remembers the work under way, the last pulls, and what nodes got.

    Call `shutdown` at the end.
    """

    def __init__(self, clock: IReactorTime, node_at: Callable[[str], Awaitable[str]]) -> None:
        """`node_at` is as for `Pulls`."""
        self._clock = clock
        self._running: dict[Activity, None] = {}
        self._others: deque[RequestReport] = deque(maxlen=_OTHERS)
        self._tally = Tally()
        self._nodes = Nodes()
        self._pulls = Pulls(clock, node_at, self._nodes.pulled)

    def live(self) -> Live:
        """Return the work under way, the last pulls and other requests, and the sums since the start."""
        now = self._clock.seconds()
        running = tuple(
            Running(each.kind, each.subject, now - each.began, each.progress(), each.waiters())
            for each in list(self._running)[:_RUNNING]
        )
        fetched = {
            split_name(each.subject)[0]: each.progress() for each in self._running if each.kind == "pull"
        }  # by the repository
        return Live(
            pulling=self._pulls.under_way(fetched)[-_RUNNING:],
            running=running,
            pulls=self._pulls.ended(),
            others=tuple(reversed(self._others)),
            nodes=self._nodes.counts(),
            saved=self._tally.saved(),
        )

    def nodes(self) -> Sequence[NodeCounts]:
        """Return what each node got since the start."""
        return self._nodes.counts()

    def shutdown(self) -> None:
        """End all pulls."""
        self._pulls.shutdown()

    def began(self, activity: Activity) -> None:
        """Add the work to those under way; that for a request of a pull to the pull."""
        if not self._pulls.began(activity):
            self._running[activity] = None
        self._tally.began(activity)

    def ended(self, activity: Activity, seconds: float, refusal: str) -> None:
        """Remove the work from those under way."""
        self._running.pop(activity, None)
        self._tally.ended(activity, refusal)
        if activity.linked is not None:
            self._nodes.linked(activity.linked)

    def asked(self, request: ContentRequest) -> None:
        """Add the request to the pull that it belongs to, if any."""
        self._pulls.asked(request)

    def answered(self, report: RequestReport) -> None:
        """Remember the request, unless it is for a page about the daemon, or is quiet and succeeded."""
        if report.route in ("page", "health", "metrics") or (report.quiet and report.status < 400):
            return
        self._tally.answered(report)
        pull = self._pulls.answered(report)
        if pull is None:
            self._others.append(evolve(report, contents=None))
        elif pull.given_by == report.id and report.source != "registry":
            self._tally.given(str(pull.image.repository))


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

    def asked(self, request: ContentRequest) -> None:
        """Pass it to all observers, in order."""
        for observer in self._observers:
            observer.asked(request)

    def answered(self, report: RequestReport) -> None:
        """Pass it to all observers, in order."""
        for observer in self._observers:
            observer.answered(report)
