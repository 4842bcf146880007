"""Threads for disk I/O and hashing."""

from __future__ import annotations

import threading

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.trial.unittest import TestCase

from k3dreg.oci.errors import StoreError
from k3dreg.streaming.workers import Workers


class WorkersTests(TestCase):
    def setUp(self) -> None:
        self.workers = Workers(reactor, threads=2)
        self.workers.start()
        self.addCleanup(self.workers.stop)

    async def test_work_runs_in_another_thread_and_its_answer_arrives_in_the_reactors(self) -> None:
        answered: list[threading.Thread] = []
        work = self.workers.run(threading.current_thread)

        def note(thread: threading.Thread) -> threading.Thread:
            answered.append(threading.current_thread())
            return thread

        self.assertIsNot(await work.addCallback(note), threading.current_thread())
        self.assertEqual(answered, [threading.current_thread()])

    async def test_arguments_go_in_and_exceptions_come_out(self) -> None:
        self.assertEqual(await self.workers.run(int, "ff", base=16), 255)
        with self.assertRaises(ValueError):
            await self.workers.run(int, "nonsense")

    async def test_no_more_run_at_once_than_there_are_threads(self) -> None:
        lock, go = threading.Lock(), threading.Event()
        running, most = 0, 0

        def work() -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
                if running == 2:
                    go.set()
            go.wait(5)
            with lock:
                running -= 1

        await gatherResults([self.workers.run(work) for _ in range(6)])
        self.assertEqual(most, 2)

    async def test_cancelling_gives_up_the_answer_and_not_the_work(self) -> None:
        go, done = threading.Event(), threading.Event()

        def slow() -> None:
            go.wait(5)
            done.set()

        work = self.workers.run(slow)
        work.cancel()
        with self.assertRaises(CancelledError):
            await work
        self.assertFalse(done.is_set())
        go.set()
        await self.workers.stop()
        self.assertTrue(done.is_set())

    async def test_a_failure_of_work_that_was_given_up_is_nobodys_error(self) -> None:
        go = threading.Event()

        def work() -> None:
            go.wait(5)
            raise ValueError

        cancelled = self.workers.run(work)
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        go.set()
        await self.workers.stop()
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_stopping_waits_for_the_work_under_way_and_for_its_answer(self) -> None:
        go = threading.Event()
        order: list[str] = []
        work = self.workers.run(go.wait, 5)
        work.addCallback(lambda _: order.append("answered"))
        stopped = self.workers.stop()
        stopped.addCallback(lambda _: order.append("stopped"))
        self.assertNoResult(stopped)
        go.set()
        await stopped
        self.assertEqual(order, ["answered", "stopped"])
        names = [thread.name for thread in threading.enumerate() if thread.name.startswith("PoolThread-k3dreg")]
        self.assertEqual(names, [])

    async def test_after_a_stop_no_work_is_taken(self) -> None:
        await self.workers.stop()
        with self.assertRaises(StoreError):
            await self.workers.run(int)
        self.workers.spare(self.fail)

    async def test_work_that_nobody_waits_for_says_in_the_log_that_it_failed(self) -> None:
        self.workers.spare(int, "nonsense")
        await self.workers.stop()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    async def test_the_way_back_leads_to_the_reactors_thread(self) -> None:
        arrived: Deferred[threading.Thread] = Deferred()
        await self.workers.run(self.workers.from_thread, lambda: arrived.callback(threading.current_thread()))
        self.assertIs(await arrived, threading.current_thread())


class AbandoningWorkersTests(TestCase):
    """Work whose end nothing depends on."""

    async def test_stopping_waits_neither_for_what_runs_nor_for_what_waits(self) -> None:
        workers = Workers(reactor, threads=1, abandoning=True)
        workers.start()
        began, go, late = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            began.set()
            go.wait(30)

        answers = [workers.run(work), workers.run(late.set)]
        began.wait(5)
        await workers.stop()
        for answer in answers:
            with self.assertRaises(StoreError):
                await answer
        with self.assertRaises(StoreError):
            await workers.run(work)
        go.set()
        self.assertFalse(late.wait(0.2))

    async def test_stopping_when_nothing_runs_ends_the_threads(self) -> None:
        workers = Workers(reactor, threads=1, name="k3dreg-ends", abandoning=True)
        workers.start()
        self.assertEqual(await workers.run(int, "7"), 7)
        await workers.stop()
        self.assertEqual([each for each in threading.enumerate() if "k3dreg-ends" in each.name], [])
