"""One piece of work for many."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.streaming.single_flight import FreshFlight, SingleFlight


class Work:
    """Counts its starts, and ends when the test says so."""

    def __init__(self) -> None:
        self.running: list[Deferred[str]] = []
        self.cancelled = 0

    def __call__(self) -> Deferred[str]:
        self.running.append(Deferred(self._cancel))
        return self.running[-1]

    def _cancel(self, _: object) -> None:
        self.cancelled += 1


class FlightsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.flights: SingleFlight[str, str] = SingleFlight()
        self.work = Work()

    def test_many_who_ask_at_once_start_the_work_once_and_all_get_the_result(self) -> None:
        waiters = [self.flights.join("a", self.work) for _ in range(20)]
        self.assertEqual((len(self.work.running), self.flights.waiters("a")), (1, 20))
        self.work.running[0].callback("result")
        self.assertEqual([self.successResultOf(waiter) for waiter in waiters], ["result"] * 20)
        self.assertEqual(len(self.flights), 0)

    def test_different_keys_are_different_work(self) -> None:
        self.flights.join("a", self.work)
        self.flights.join("b", self.work)
        self.assertEqual(self.flights.keys(), ["a", "b"])
        self.assertEqual(len(self.work.running), 2)

    def test_a_failure_reaches_every_waiter_in_a_failure_of_his_own(self) -> None:
        waiters = [self.flights.join("a", self.work) for _ in range(3)]
        error = ValueError("no")
        self.work.running[0].errback(error)
        failures = [self.failureResultOf(waiter, ValueError) for waiter in waiters]
        self.assertEqual([failure.value for failure in failures], [error] * 3)
        self.assertEqual(len({id(failure) for failure in failures}), 3)

    def test_who_asks_after_the_end_starts_anew_even_from_within_the_delivery(self) -> None:
        again: list[Deferred[str]] = []
        self.flights.join("a", self.work).addErrback(lambda _: again.append(self.flights.join("a", self.work)))
        second = self.flights.join("a", self.work)
        self.work.running[0].errback(ValueError())
        self.failureResultOf(second, ValueError)
        self.assertEqual(len(self.work.running), 2)
        self.work.running[1].callback("better")
        self.assertEqual(self.successResultOf(again[0]), "better")

    def test_cancelling_a_waiter_removes_only_him(self) -> None:
        first, second = self.flights.join("a", self.work), self.flights.join("a", self.work)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual((self.work.cancelled, self.flights.waiters("a")), (0, 1))
        self.work.running[0].callback("result")
        self.assertEqual(self.successResultOf(second), "result")

    def test_the_work_goes_on_when_all_have_left_and_can_be_joined_again(self) -> None:
        self.failureResultOf(_cancelled(self.flights.join("a", self.work)), CancelledError)
        late = self.flights.join("a", self.work)
        self.assertEqual((self.work.cancelled, len(self.work.running)), (0, 1))
        self.work.running[0].callback("result")
        self.assertEqual(self.successResultOf(late), "result")

    def test_a_failure_that_nobody_waits_for_is_not_an_unhandled_error(self) -> None:
        self.failureResultOf(_cancelled(self.flights.join("a", self.work)), CancelledError)
        self.work.running[0].errback(ValueError())
        self.work.running.clear()
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(len(self.flights), 0)

    def test_a_waiter_whom_another_cancels_during_the_delivery_hears_of_the_cancelling_only(
        self,
    ) -> None:
        first = self.flights.join("a", self.work)
        second, third = self.flights.join("a", self.work), self.flights.join("a", self.work)
        first.addCallback(lambda _: second.cancel())
        self.work.running[0].callback("result")
        self.failureResultOf(second, CancelledError)
        self.assertEqual(self.successResultOf(third), "result")

    def test_work_that_cannot_even_start_is_a_failure_like_any_other(self) -> None:
        def start() -> Awaitable[str]:
            raise KeyError("start")

        self.failureResultOf(self.flights.join("a", start), KeyError)
        self.assertEqual(len(self.flights), 0)

    def test_work_that_ends_at_once_is_delivered_at_once(self) -> None:
        self.assertEqual(self.successResultOf(self.flights.join("a", lambda: succeed("now"))), "now")
        self.assertEqual(len(self.flights), 0)

    def test_the_start_may_ask_for_its_own_key_without_starting_twice(self) -> None:
        inner: list[Deferred[str]] = []

        def start() -> Deferred[str]:
            inner.append(self.flights.join("a", start))
            return self.work()

        outer = self.flights.join("a", start)
        self.work.running[0].callback("result")
        self.assertEqual([self.successResultOf(waiter) for waiter in (outer, *inner)], ["result"] * 2)

    def test_a_shutdown_cancels_the_work_tells_the_waiters_and_takes_nothing_more(self) -> None:
        waiter = self.flights.join("a", self.work)
        self.successResultOf(self.flights.shutdown())
        self.failureResultOf(waiter, CancelledError)
        self.assertEqual((self.work.cancelled, len(self.flights)), (1, 0))
        self.failureResultOf(self.flights.join("a", self.work), CancelledError)
        self.assertEqual(len(self.work.running), 1)


class FreshTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.fresh: FreshFlight[str, str] = FreshFlight(self.clock, 1.0)
        self.work = Work()

    def test_who_asks_during_a_question_gets_the_answer_to_the_next(self) -> None:
        first = self.fresh.ask("a", self.work)
        late = [self.fresh.ask("a", self.work) for _ in range(19)]
        self.work.running[0].callback("old")
        self.assertEqual(self.successResultOf(first), "old")
        self.assertNoResult(late[0])
        self.work.running[1].callback("new")
        self.assertEqual([self.successResultOf(waiter) for waiter in late], ["new"] * 19)
        self.assertEqual((len(self.work.running), len(self.fresh)), (2, 0))

    def test_who_asks_on_hearing_the_answer_shares_the_next_question_which_has_not_begun(self) -> None:
        again: list[Deferred[str]] = []
        self.fresh.ask("a", self.work).addCallback(lambda _: again.append(self.fresh.ask("a", self.work)))
        late = self.fresh.ask("a", self.work)
        self.work.running[0].callback("old")
        self.work.running[1].callback("new")
        self.assertEqual([self.successResultOf(waiter) for waiter in (late, *again)], ["new", "new"])
        self.assertEqual(len(self.work.running), 2)

    def test_a_failed_question_fails_those_who_shared_it_and_the_next_is_asked_all_the_same(self) -> None:
        first, late = self.fresh.ask("a", self.work), self.fresh.ask("a", self.work)
        self.work.running[0].errback(ValueError())
        self.failureResultOf(first, ValueError)
        self.work.running[1].callback("new")
        self.assertEqual(self.successResultOf(late), "new")

    def test_a_question_that_all_have_left_before_it_began_is_not_asked(self) -> None:
        first = self.fresh.ask("a", self.work)
        self.failureResultOf(_cancelled(self.fresh.ask("a", self.work)), CancelledError)
        self.work.running[0].callback("answer")
        self.assertEqual(self.successResultOf(first), "answer")
        self.assertEqual((len(self.work.running), len(self.fresh)), (1, 0))

    def test_a_question_whose_answer_does_not_come_does_not_hold_the_others_up_for_long(self) -> None:
        lost = self.fresh.ask("a", self.work)
        late = [self.fresh.ask("a", self.work) for _ in range(3)]
        self.clock.advance(0.9)
        self.assertEqual(len(self.work.running), 1)
        self.clock.advance(0.1)
        self.work.running[1].callback("new")
        self.assertEqual([self.successResultOf(waiter) for waiter in late], ["new"] * 3)
        again = self.fresh.ask("a", self.work)
        self.work.running[2].callback("newer")
        self.assertEqual(self.successResultOf(again), "newer")
        self.assertNoResult(lost)
        self.work.running[0].callback("at last")
        self.assertEqual((self.successResultOf(lost), len(self.work.running), len(self.fresh)), ("at last", 3, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_shutdown_cancels_what_takes_too_long_as_well(self) -> None:
        lost = self.fresh.ask("a", self.work)
        self.clock.advance(1)
        now = self.fresh.ask("a", self.work)
        self.successResultOf(self.fresh.shutdown())
        for waiter in (lost, now):
            self.failureResultOf(waiter, CancelledError)
        self.assertEqual((self.work.cancelled, len(self.fresh), self.clock.getDelayedCalls()), (2, 0, []))

    def test_answers_that_are_there_at_once_are_given_at_once(self) -> None:
        for _ in range(3):
            self.assertEqual(self.successResultOf(self.fresh.ask("a", lambda: succeed("now"))), "now")

    def test_a_shutdown_cancels_the_question_and_tells_all(self) -> None:
        waiters = [self.fresh.ask("a", self.work) for _ in range(3)]
        self.successResultOf(self.fresh.shutdown())
        for waiter in waiters:
            self.failureResultOf(waiter, CancelledError)
        self.assertEqual((self.work.cancelled, len(self.work.running), len(self.fresh)), (1, 1, 0))
        self.failureResultOf(self.fresh.ask("a", self.work), CancelledError)


def _cancelled(deferred: Deferred[Any]) -> Deferred[Any]:
    deferred.cancel()
    return deferred
