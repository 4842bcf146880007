"""Put the requests of clients together to pulls, of images by clients."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from k3dreg.reporting.activity import Activity, ContentRequest, Progress, RequestReport
from k3dreg.reporting.logger import make_logger
from k3dreg.status.overview import SeenPull
from k3dreg.status.pull import Pull
from k3dreg.status.words import summary
from k3dreg.web.request_log import printable

log = make_logger()

# Seconds without a request after which a pull is over.  A node may take some seconds to write a large layer to its disk
# before it asks for the next one.
QUIET = 10.0
# Seconds without a request after which a pull looks as if it were over: nodes ask for one thing right after another.
_LOOKS_OVER = 1.0
# Pulls under way that are told apart: more than kubelets start at a time.  Most have 10 KB, and none more than 1 MB.
_MOST = 200
# Pulls that have ended and are kept, which fill a screen or two.
_KEPT = 30


class Pulls:
    """The pulls under way and those that have ended last.  Call `shutdown` at the end.

    A pull is over when all that its manifest lists was sent or linked, or after a silence.  Then its line is logged.
    """

    def __init__(
        self,
        clock: IReactorTime,
        node_at: Callable[[str], Awaitable[str]],
        ended: Callable[[SeenPull], object] = lambda pull: None,
    ) -> None:
        """`node_at` returns the name of the node that has an address, "" for none, and raises nothing.

        `ended` is called with each pull that is over.
        """
        self._clock = clock
        self._node_at = node_at
        self._tell = ended
        self._count = 0
        # All pulls that are not over, the oldest first, each with the call that ends it after a silence.
        self._pulls: dict[Pull, IDelayedCall] = {}
        self._requests: dict[str, Pull] = {}  # by the IDs of the requests under way
        # The look-ups of the nodes' names, of all pulls that were not told of yet.
        self._finding: dict[Pull, Deferred[None]] = {}
        self._ended: deque[SeenPull] = deque(maxlen=_KEPT)

    def asked(self, request: ContentRequest) -> None:
        """Add a request that begins to its pull, if it belongs to one, or begins one."""
        pull = self._pull_of(request)
        if pull is None:
            return
        pull.begin(request)
        self._requests[request.id] = pull

    def began(self, activity: Activity) -> bool:
        """Note the progress of the body of a pull's request.  Return False if it belongs to no pull."""
        pull = self._requests.get(activity.request_id)
        if pull is None:
            return False
        pull.under_way[activity.request_id].progress = activity.progress
        return True

    def answered(self, report: RequestReport) -> Pull | None:
        """Add a request that has ended to its pull, and return that; None if it belongs to no pull."""
        pull = self._requests.pop(report.id, None)
        if pull is None:
            return None
        pull.end(report)
        if pull.is_complete:
            self._end(pull)
        else:
            self._pulls[pull].reset(QUIET)
        return pull

    def under_way(self, fetched: Mapping[str, Progress]) -> tuple[SeenPull, ...]:
        """Return the pulls under way, the oldest first.

        `fetched` is the progress of the engine's pulls by the repository.
        """
        now = self._clock.seconds()
        return tuple(
            pull.seen(now, fetched.get(str(pull.image.repository), Progress()))
            for pull in self._pulls
            if self._is_active(pull)
        )

    def ended(self) -> tuple[SeenPull, ...]:
        """Return the pulls that are over, or look so, the last one first."""
        quiet = [pull.over() for pull in self._pulls if not self._is_active(pull)]
        quiet += [pull.over() for pull in self._finding if pull not in self._pulls]
        newest = sorted((*quiet, *self._ended), key=lambda pull: pull.at + pull.seconds, reverse=True)
        return tuple(newest[:_KEPT])

    def shutdown(self) -> None:
        """End all pulls, and look up no node any more."""
        for pull in list(self._finding):
            self._forget(pull)

    def _is_active(self, pull: Pull) -> bool:
        return bool(pull.under_way) or self._clock.seconds() - pull.last < _LOOKS_OVER

    def _pull_of(self, request: ContentRequest) -> Pull | None:
        if not request.may_pull:
            return None
        repository = request.reference.repository
        same = [p for p in self._pulls if p.client == request.client and p.image.repository == repository]
        fits: Iterable[Pull] = (p for p in same if p.has_part(request) and not p.has_asked(request))
        if (found := next(iter(fits), None)) is not None:
            return found
        if not request.is_manifest:  # further ranges of a blob
            fits = (p for p in same if p.has_part(request))
        fits = (*fits, *(p for p in reversed(same) if p.may_have_part(request)))
        if (found := next(iter(fits), None)) is not None:
            return found
        return self._begin(request) if request.is_manifest else None

    def _begin(self, request: ContentRequest) -> Pull:
        if len(self._finding) >= _MOST:
            self._forget(next(iter(self._finding)))
        self._count += 1
        pull = Pull(self._count, request)
        self._pulls[pull] = self._clock.callLater(QUIET, self._quiet, pull)
        self._finding[pull] = finding = Deferred.fromCoroutine(self._find(pull))
        finding.addErrback(_not_found)
        return pull

    async def _find(self, pull: Pull) -> None:
        pull.node = await self._node_at(pull.client)

    def _quiet(self, pull: Pull) -> None:
        if pull.under_way:
            self._pulls[pull] = self._clock.callLater(QUIET, self._quiet, pull)
        else:
            self._end(pull)

    def _end(self, pull: Pull) -> None:
        """Log and report a pull that is over, when its node has been looked up."""
        call = self._pulls.pop(pull)
        if call.active():
            call.cancel()
        for request in pull.under_way:
            del self._requests[request]
        self._finding[pull].addCallback(lambda _: self._over(pull))

    def _forget(self, pull: Pull) -> None:
        """Log and report a pull now, whether it is over or not."""
        if pull in self._pulls:
            self._end(pull)
        if pull in self._finding:
            self._finding[pull].cancel()

    def _over(self, pull: Pull) -> None:
        del self._finding[pull]
        seen = pull.over()
        self._ended.appendleft(seen)
        # The fields of the pull are for `json_log`.
        is_fault = seen.broke_off or seen.status >= 500
        write = log.warn if is_fault else log.info
        write("{line}", line=printable(summary(seen)), pull=seen)
        self._tell(seen)


def _not_found(failure: Failure) -> None:
    if not failure.check(CancelledError):
        log.failure("the node of a pull is not known", failure=failure)
