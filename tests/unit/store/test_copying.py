"""A blob that comes from elsewhere, copied into a store."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from k3dreg.oci.errors import ContentGone, DigestMismatch, StoreFull
from k3dreg.store.copying import keep
from k3dreg.streaming.content import IBlob
from tests.fakes.registry import PacedBlob, WholeBlob
from tests.fakes.stores import StoreTestCase
from tests.fakes.workers import InlineWorkers, ManualWorkers

DATA = bytes(range(256)) * (3 * 4096)  # 3 MiB


class KeepingTests(StoreTestCase):
    def begin(self, blob: IBlob, workers: InlineWorkers | None = None) -> Deferred[None]:
        self.writer = self.store.writer(durable=True)
        return Deferred.fromCoroutine(keep(workers or InlineWorkers(), blob, self.writer))

    def test_it_is_kept_whole(self) -> None:
        for blob in (WholeBlob(DATA), WholeBlob(b"")):
            self.successResultOf(self.begin(blob))
            self.assertEqual(self.result(self.blob(blob.digest).read()), blob.data)

    def test_wrong_bytes_are_not(self) -> None:
        blob = WholeBlob(DATA)
        blob.data = DATA[:-1] + b"x"
        self.failureResultOf(self.begin(blob), DigestMismatch)
        self.assertEqual((self.store.has(blob.digest), self.staged()), (False, []))

    def test_no_more_comes_than_is_written(self) -> None:
        workers, blob = ManualWorkers(), PacedBlob(DATA)
        kept = self.begin(blob, workers)
        blob.arrive(10)
        self.assertFalse(blob.paused)
        blob.arrive(len(DATA) - 20)
        self.assertTrue(blob.paused)
        workers.work()
        self.assertTrue(blob.paused)
        workers.work()
        self.assertFalse(blob.paused)
        blob.arrive(10)
        while workers.waiting:
            workers.work()
        self.successResultOf(kept)
        self.assertEqual(self.result(self.blob(blob.digest).read()), DATA)

    def test_a_blob_that_breaks_leaves_nothing(self) -> None:
        blob = PacedBlob(DATA)
        kept = self.begin(blob)
        blob.arrive(100)
        blob.fail(ContentGone("it went away"))
        self.failureResultOf(kept, ContentGone)
        self.assertEqual(self.staged(), [])

    def test_a_full_disk_stops_the_sender_and_is_what_is_told(self) -> None:
        blob = PacedBlob(DATA)
        kept = self.begin(blob)

        def write(data: Any) -> None:
            raise StoreFull("no room")

        self.writer.write = write  # type: ignore[method-assign]
        blob.arrive(100)
        self.assertTrue(blob.stopped)
        blob.fail(ContentGone("the reader went away"))
        self.failureResultOf(kept, StoreFull)
        self.assertEqual(self.staged(), [])

    def test_giving_it_up_leaves_nothing(self) -> None:
        blob = PacedBlob(DATA)
        kept = self.begin(blob)
        blob.arrive(100)
        kept.addErrback(lambda _: None)
        kept.cancel()
        self.assertEqual((blob.cancelled, self.staged()), (True, []))
