"""An outcome is told to everybody who waits for it, and a waiter that leaves disturbs nobody."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.streaming.outcome import Outcome


class OutcomeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.outcome: Outcome[int] = Outcome()

    def test_those_who_wait_before_and_after_get_the_value(self) -> None:
        before = self.outcome.wait()
        self.outcome.succeed(7)
        self.assertEqual(self.successResultOf(before), 7)
        self.assertEqual(self.successResultOf(self.outcome.wait()), 7)

    def test_each_waiter_gets_the_failure_for_himself(self) -> None:
        waiters = [self.outcome.wait(), self.outcome.wait()]
        self.outcome.fail(ValueError("no"))
        for waiter in (*waiters, self.outcome.wait()):
            self.failureResultOf(waiter, ValueError)

    def test_a_failure_that_nobody_waited_for_is_not_an_unhandled_error(self) -> None:
        self.outcome.fail(ValueError("no"))
        self.assertTrue(self.outcome.is_set)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_only_the_first_setting_counts(self) -> None:
        self.outcome.succeed(1)
        self.outcome.succeed(2)
        self.outcome.fail(ValueError("late"))
        self.assertEqual(self.successResultOf(self.outcome.wait()), 1)

    def test_a_cancelled_waiter_leaves_the_others_alone(self) -> None:
        leaving, staying = self.outcome.wait(), self.outcome.wait()
        leaving.cancel()
        self.failureResultOf(leaving, CancelledError)
        self.outcome.succeed(7)
        self.assertEqual(self.successResultOf(staying), 7)

    def test_a_waiter_may_cancel_another_while_it_is_told(self) -> None:
        first, second = self.outcome.wait(), self.outcome.wait()

        def cancel(value: int) -> int:
            second.cancel()
            return value

        first.addCallback(cancel)
        self.outcome.succeed(7)
        self.failureResultOf(second, CancelledError)

    def test_a_waiter_may_wait_again_while_it_is_told(self) -> None:
        again: list[Deferred[int]] = []
        self.outcome.wait().addCallback(lambda _: again.append(self.outcome.wait()))
        self.outcome.succeed(7)
        self.assertEqual(self.successResultOf(again[0]), 7)
