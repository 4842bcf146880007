"""An export that fails leaves nothing, however it ends."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore

from k3dreg.images.export_run import Export
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineUnavailable, StoreError
from k3dreg.store.arrivals import Arrivals
from k3dreg.streaming.content import IBlob
from tests.fakes.engine import FakeEngine
from tests.fakes.images import make_image
from tests.fakes.stores import StoreTestCase, refuse_writes
from tests.fakes.workers import InlineWorkers


class ExportTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        fake = FakeEngine()
        self.fake = fake.add(make_image(), "hello:1")
        engine, workers, self.slots = fake.client(self.clock), InlineWorkers(self.clock), DeferredSemaphore(1)
        image = self.result(engine.inspect("hello:1"))
        arrivals = Arrivals(self.store, workers)
        self.export = Export(image, engine, self.store, arrivals, workers, self.clock, self.slots)

    def test_what_it_holds_is_released_also_where_it_cannot_be_kept(self) -> None:
        refuse_writes(self)
        self.failureResultOf(self.export.run(), StoreError)
        self.failureResultOf(self.export.contents(), StoreError)
        # That nothing is held any more, the fixture for all unit tests finds out.
        self.successResultOf(self.slots.acquire())

    def test_the_next_export_has_its_turn_when_one_has_ended(self) -> None:
        self.successResultOf(self.export.run())
        self.successResultOf(self.slots.acquire())

    def test_those_who_wait_for_a_part_are_told_when_it_fails(self) -> None:
        self.successResultOf(self.slots.acquire())
        parts = [self.begin(digest) for digest in self.fake.contents]
        running = self.export.run()
        refuse_writes(self)
        self.slots.release()
        self.failureResultOf(running, StoreError)
        for part in parts:
            self.failureResultOf(part, StoreError)

    def test_who_waits_for_an_export_that_is_cancelled_before_its_turn_is_told(self) -> None:
        self.successResultOf(self.slots.acquire())
        contents, part, running = self.export.contents(), self.begin(self.fake.root.digest), self.export.run()
        self.export.cancel()
        self.failureResultOf(running, CancelledError)
        for waiting in (contents, part):
            self.failureResultOf(waiting, EngineUnavailable)

    def begin(self, digest: Digest) -> Deferred[IBlob]:
        return Deferred.fromCoroutine(self.export.blob(digest))
