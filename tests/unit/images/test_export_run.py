"""An export that fails leaves nothing, however it ends."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, DeferredSemaphore

from k3dreg.images.export_run import Export
from k3dreg.images.export_spool import ExportSpool
from k3dreg.oci.errors import EngineUnavailable, StoreError
from tests.fakes.engine import FakeEngine
from tests.fakes.images import make_image
from tests.fakes.stores import StoreTestCase
from tests.fakes.workers import InlineWorkers


class ExportTests(StoreTestCase):
    def test_what_it_holds_is_released_also_where_it_cannot_be_ended(self) -> None:
        fake = FakeEngine()
        fake.add(make_image(), "hello:1")
        engine = fake.client(self.clock)
        image = self.result(engine.inspect("hello:1"))

        def fail(spool: ExportSpool) -> None:
            raise StoreError("the disk is gone")

        self.patch(ExportSpool, "abort", fail)
        export = Export(image, engine, self.store, InlineWorkers(self.clock), self.clock, DeferredSemaphore(1))
        self.failureResultOf(export.run(), StoreError)
        self.failureResultOf(export.contents(), StoreError)
        # That nothing is held any more, the fixture for all unit tests finds out.

    def test_who_waits_for_an_export_that_is_cancelled_before_its_turn_is_told(self) -> None:
        fake = FakeEngine()
        fake.add(make_image(), "hello:1")
        engine = fake.client(self.clock)
        image = self.result(engine.inspect("hello:1"))
        slots = DeferredSemaphore(1)
        self.successResultOf(slots.acquire())
        export = Export(image, engine, self.store, InlineWorkers(self.clock), self.clock, slots)
        contents, running = export.contents(), export.run()
        export.cancel()
        self.failureResultOf(running, CancelledError)
        self.failureResultOf(contents, EngineUnavailable)
