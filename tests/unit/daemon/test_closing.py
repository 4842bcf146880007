"""What was opened is closed in the reverse of its order, whatever fails."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.daemon.closing import Closing
from k3dreg.oci.errors import StoreError
from tests.fakes.logs import heard


class ClosingTests(SynchronousTestCase):
    def test_each_waits_for_the_one_before_it_and_all_that_fails_is_logged(self) -> None:
        closed: list[str] = []
        slow: Deferred[None] = Deferred()

        async def file() -> None:
            closed.append("file")
            raise StoreError("no space")

        def reader() -> None:
            closed.append("reader")
            raise ValueError

        closing = Closing()
        closing.add(lambda: closed.append("store"))
        closing.add(file)
        closing.add(lambda: slow)
        closing.add(reader)
        with heard() as lines:
            closed_all = Deferred.fromCoroutine(closing.close())
            self.assertEqual(closed, ["reader"])
            slow.errback(StoreError("gone"))
            self.successResultOf(closed_all)
        self.assertEqual(closed, ["reader", "file", "store"])
        self.assertEqual(
            [line.split(" failed")[0].rpartition(".")[2] for line in lines], ["reader", "<lambda>", "file"]
        )
        self.assertEqual(
            [type(error.value) for error in self.flushLoggedErrors()], [ValueError, StoreError, StoreError]
        )
