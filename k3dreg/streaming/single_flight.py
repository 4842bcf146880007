"""Single flight: callers that need the same result at the same time share one piece of work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar, cast

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.outcome import Waiters

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

log = make_logger()


@define(eq=False)
class _Flight(Generic[V]):
    waiters: Waiters[V] = field(factory=Waiters)
    work: Deferred[None] | None = None


class SingleFlight(Generic[K, V]):
    """Single flight: the first caller for a key starts the work; callers during the work wait for the same result.

    The work goes on when all callers have cancelled; a failure is then only logged.  Results are not kept: a call after
    the end starts the work anew.  Call `shutdown` at the end.
    """

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[V]] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: K) -> bool:
        return key in self._flights

    def keys(self) -> list[K]:
        """Return the keys whose work is under way."""
        return list(self._flights)

    def waiters(self, key: K) -> int:
        """Return how many callers wait for `key`."""
        flight = self._flights.get(key)
        return 0 if flight is None else len(flight.waiters)

    def join(self, key: K, start: Callable[[], Awaitable[V]]) -> Deferred[V]:
        """Return the result of the work for `key`, which `start` begins unless it is under way.

        Fails as the work, or `start` itself, fails; each caller gets its own Failure of the same exception.
        Cancelling does not affect the work or other callers.  Fails with `CancelledError` after `shutdown`.

        The work must not wait for its own key: it would wait for ever.
        """
        if self._closed:
            return fail(CancelledError("k3dreg is stopping"))
        flight = self._flights.get(key)
        if flight is not None:
            return flight.waiters.add()
        # Added before `start` is called, because `start` may call `join` for the same key.
        flight = self._flights[key] = _Flight()
        waiter = flight.waiters.add()
        flight.work = Deferred.fromCoroutine(_awaited(start)).addBoth(self._landed, key, flight)
        return waiter

    def shutdown(self) -> Deferred[None]:
        """Refuse new calls and cancel all work; fires when it has ended.  Waiters get `CancelledError`."""
        self._closed = True
        works = [flight.work for flight in self._flights.values() if flight.work is not None]
        for work in works:
            work.cancel()
        return DeferredList(works).addCallback(lambda _: None)

    def _landed(self, result: V | Failure, key: K, flight: _Flight[V]) -> None:
        # Removed before the waiters fire, so that a callback that calls `join` again starts new work.
        del self._flights[key]
        if not flight.waiters:
            _log_unheard(result, key)
        flight.waiters.deliver(result)


class Recent(Generic[V]):
    """A value that is asked for once for all callers, and again when it is older than some seconds."""

    def __init__(self, ask: Callable[[], Awaitable[V]], clock: IReactorTime, max_age: float) -> None:
        self._ask = ask
        self._clock = clock
        self._max_age = max_age
        self._flight: SingleFlight[str, V] = SingleFlight()
        self._known: tuple[float, V] | None = None

    async def get(self) -> V:
        """Return the value, at most `max_age` seconds old.  Raises what asking raises, which is not kept."""
        if self._known is not None and 0 <= self._clock.seconds() - self._known[0] < self._max_age:
            return self._known[1]
        return await self._flight.join("value", self._asked)

    async def _asked(self) -> V:
        value = await self._ask()
        self._known = self._clock.seconds(), value
        return value


@define(eq=False)
class _Question(Generic[V]):
    """The questions about one key: the one under way, those that exceeded the time limit, and the next one."""

    now: _Flight[V] | None = None
    late: list[_Flight[V]] = field(factory=list)
    later: Waiters[V] = field(factory=Waiters)
    start_later: Callable[[], Awaitable[V]] | None = None


class FreshFlight(Generic[K, V]):
    """Single flight for answers that must not be older than the call.

    A call does not share a question that began before it.  All calls during one question share the next question,
    which starts when the first ends.  So any number of simultaneous calls cost two questions, and a steady stream of
    calls costs one question at a time.  Call `shutdown` at the end.
    """

    def __init__(self, clock: IReactorTime, max_wait: float) -> None:
        """`max_wait`: seconds after which the next question starts even if the one before has no answer yet."""
        self._clock = clock
        self._max_wait = max_wait
        self._questions: dict[K, _Question[V]] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._questions)

    def ask(self, key: K, start: Callable[[], Awaitable[V]]) -> Deferred[V]:
        """Return an answer for `key` from a `start` that was called after this call.

        Fails as the question fails.  Cancelling does not affect other callers; a question whose callers have all
        cancelled before its start is not asked.  Fails with `CancelledError` after `shutdown`.
        """
        if self._closed:
            return fail(CancelledError("k3dreg is stopping"))
        question = self._questions.setdefault(key, _Question())
        if question.now is not None:
            question.start_later = start
            return question.later.add()
        waiters: Waiters[V] = Waiters()
        waiter = waiters.add()
        self._start(key, question, waiters, start)
        return waiter

    def shutdown(self) -> Deferred[None]:
        """Refuse new calls and cancel all work; fires when it has ended.  Waiters get `CancelledError`."""
        self._closed = True
        works = []
        for question in list(self._questions.values()):
            question.later.deliver(Failure(CancelledError("k3dreg is stopping")))
            for flight in (question.now, *question.late):
                if flight is not None and flight.work is not None:
                    works.append(flight.work)
                    flight.work.cancel()
        return DeferredList(works).addCallback(lambda _: None)

    def _start(self, key: K, question: _Question[V], waiters: Waiters[V], start: Callable[[], Awaitable[V]]) -> None:
        flight = question.now = _Flight(waiters)
        work = Deferred.fromCoroutine(_awaited(start))
        # Set before `addBoth`, which calls `_answered` at once if the answer exists; that may start the next question.
        flight.work = cast("Deferred[None]", work)
        timer = self._clock.callLater(self._max_wait, self._give_way, key, question, flight)
        work.addBoth(self._answered, key, question, flight, timer)

    def _give_way(self, key: K, question: _Question[V], flight: _Flight[V]) -> None:
        question.late.append(flight)
        self._next(key, question)

    def _answered(
        self, result: V | Failure, key: K, question: _Question[V], flight: _Flight[V], timer: IDelayedCall
    ) -> None:
        if timer.active():
            timer.cancel()
        if not flight.waiters:
            _log_unheard(result, key)
        # `question.now` is still set here, so a callback that calls `ask` again joins the next question.
        flight.waiters.deliver(result)
        if question.now is flight:
            self._next(key, question)
        else:
            question.late.remove(flight)
            self._forget_if_done(key, question)

    def _next(self, key: K, question: _Question[V]) -> None:
        question.now = None
        start, question.start_later = question.start_later, None
        if start is not None and question.later:
            waiters, question.later = question.later, Waiters()
            self._start(key, question, waiters, start)
        else:
            self._forget_if_done(key, question)

    def _forget_if_done(self, key: K, question: _Question[V]) -> None:
        if question.now is None and not question.late:
            del self._questions[key]


async def _awaited(start: Callable[[], Awaitable[V]]) -> V:
    """Call `start` in a coroutine, so that an exception of `start` itself fails the work."""
    return await start()


def _log_unheard(result: object, key: object) -> None:
    if isinstance(result, Failure) and not result.check(CancelledError):
        log.warn(
            "{key}: failed after the last request for it had ended: {error}", key=key, error=result.getErrorMessage()
        )
