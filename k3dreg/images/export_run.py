"""One run of `docker save`, whose blobs can be sent while they arrive."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.image import EngineImage
from k3dreg.docker.interfaces import IEngine
from k3dreg.images.export_contents import ExportContents, contents_of
from k3dreg.images.export_spool import Begun, ExportSpool, Grown, SpoolEvent, close_handles
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown, ContentError, EngineUnavailable, K3dregError, StoreError
from k3dreg.reporting.activity import Activity, Progress
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.observer import NULL_OBSERVER, IObserver, observed
from k3dreg.store.interfaces import IBlobStore
from k3dreg.streaming.arriving_blob import ArrivingBlob
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.outcome import Outcome
from k3dreg.streaming.workers import Workers

log = make_logger()

# Seconds between two log lines about the progress of an export.
_REPORT_EVERY = 5.0
_NO_ROOM_ADVICE = (
    "give the state directory a disk that can be written and has room for the image; images that k3dreg reads in "
    "Docker's own files (--reader) are served without it"
)


class Export:
    """An export of one image into the store.

    Call `run` once.  `contents` and `blob` may be called any number of times, before and after.
    """

    def __init__(
        self,
        image: EngineImage,
        engine: IEngine,
        store: IBlobStore,
        workers: Workers,
        clock: IReactorTime,
        slots: DeferredSemaphore,
        observer: IObserver = NULL_OBSERVER,
    ) -> None:
        self._observer = observer
        self.image = image
        self.seconds = 0.0
        self.received = 0
        self._engine = engine
        self._store = store
        self._workers = workers
        self._clock = clock
        self._slots = slots
        self._contents: Outcome[ExportContents] = Outcome()
        self._wanted: dict[Digest, Outcome[IBlob]] = {}
        self._arriving: ArrivingBlob | None = None
        self._running: Deferred[ExportContents] | None = None

    def contents(self) -> Deferred[ExportContents]:
        """Return what the export contained, after its success.  Fails as the export fails."""
        return self._contents.wait()

    async def blob(self, digest: Digest) -> IBlob:
        """Return a part of the image as soon as its first bytes have arrived.

        Raises `BlobUnknown` when the export has ended without it, or the error with which the export failed.
        """
        arriving = self._arriving
        blob = arriving if arriving is not None and arriving.digest == digest else self._store.get(digest)
        if blob is not None:
            return blob
        if self._contents.is_set:
            await self._contents.wait()  # raises if the export failed
            raise BlobUnknown(f"Docker's export did not hold {digest}")
        return await self._wanted.setdefault(digest, Outcome()).wait()

    def cancel(self) -> None:
        """Cancel the export.  Callers that wait for it get `EngineUnavailable`."""
        if self._running is not None:
            self._running.cancel()

    def run(self) -> Deferred[ExportContents]:
        """Run the export; fires with its contents, or fails, after all callers that wait were told."""
        self._running = Deferred.fromCoroutine(self._run())
        return self._running

    async def _run(self) -> ExportContents:
        name = ", ".join(self.image.tags) or str(self.image.id)
        try:
            await self._slots.acquire()
        except CancelledError:
            self._fail(EngineUnavailable(f"the export of {name} was cancelled: k3dreg is stopping"))
            raise
        started = self._clock.seconds()
        try:
            log.info("exporting {name} ({id}) from Docker", name=name, id=self.image.id.short)
            # The engine does not say the archive's size; the image's size is close to it.
            activity = Activity(
                "export", name, started, lambda: Progress(self.received, self.image.size), self._count_waiters
            )
            with observed(self._observer, activity, self._clock):
                contents = await self._transfer(name, started)
        except CancelledError:
            self._fail(EngineUnavailable(f"the export of {name} was cancelled: k3dreg is stopping"))
            raise
        except StoreError as error:
            refused = type(error)(
                f"Docker's export of {name} has to be written to the disk before it can be served, and {error}",
                advice=_NO_ROOM_ADVICE,
            )
            log.error("{error}; {advice}", error=refused, advice=refused.advice)
            self._fail(refused)
            raise refused from error
        except K3dregError as error:
            log.error("exporting {name} failed: {error} {advice}", name=name, error=error, advice=error.advice)
            self._fail(error)
            raise
        except Exception:
            self._fail(ContentError(f"the export of {name} failed inside k3dreg; its log says where"))
            raise
        finally:
            self.seconds = self._clock.seconds() - started
            self._slots.release()
        log.info(
            "exported {name}: {size:.0f} MB in {seconds:.1f} s, {parts} blobs",
            name=name,
            size=self.received / 1e6,
            seconds=self.seconds,
            parts=len(contents.present),
        )
        self._contents.succeed(contents)
        for digest, waiting in self._wanted.items():
            waiting.fail(BlobUnknown(f"Docker's export did not hold {digest}"))
        return contents

    async def _transfer(self, name: str, started: float) -> ExportContents:
        stream = await self._engine.save(self.image.id)
        # The spool holds its blobs in the store until `release`, so that even a small cache evicts none before the end.
        spool = ExportSpool(self._store)
        try:
            reported = started
            while data := await stream.read():
                self.received += len(data)
                for event in await self._workers.acquire(spool.feed, close_handles, data):
                    self._apply(event)
                if self._clock.seconds() - reported >= _REPORT_EVERY:
                    reported = self._clock.seconds()
                    log.info(
                        "exporting {name}: {size:.0f} MB so far, {seconds:.0f} s",
                        name=name,
                        size=self.received / 1e6,
                        seconds=reported - started,
                    )
            contents = await contents_of(self.image, spool.finish(), spool.members, self._store, self._workers)
            await self._drop_what_nobody_asks_for(spool, contents)
            return contents
        finally:
            stream.close()
            try:
                await self._workers.run(spool.abort)
            finally:
                spool.release()

    def _apply(self, event: SpoolEvent) -> None:
        if isinstance(event, Begun):
            self._arriving = ArrivingBlob(self._workers, event.digest, event.size, event.handle)
            self._deliver(event.digest, self._arriving)
        elif isinstance(event, Grown):
            if self._arriving is not None:
                self._arriving.advance(event.total)
        else:
            kept = self._store.get(event.digest)
            if self._arriving is not None:
                self._arriving.finish(kept)
                self._arriving = None
            if kept is not None:
                self._deliver(event.digest, kept)

    def _count_waiters(self) -> int:
        return self._contents.waiting + sum(blob.waiting for blob in self._wanted.values())

    def _deliver(self, digest: Digest, blob: IBlob) -> None:
        waiting = self._wanted.pop(digest, None)
        if waiting is not None:
            waiting.succeed(blob)

    def _fail(self, error: K3dregError) -> None:
        if self._arriving is not None:
            self._arriving.fail(error)
            self._arriving = None
        for waiting in self._wanted.values():
            waiting.fail(error)
        self._contents.fail(error)

    async def _drop_what_nobody_asks_for(self, spool: ExportSpool, contents: ExportContents) -> None:
        """Remove exported blobs that are no part of the image.

        The classic store's export has a legacy config for each layer, and a manifest that nodes never see.
        """
        for kept in spool.members.values():
            if kept.digest not in contents.present and not kept.was_here:
                await self._store.discard(kept.digest)
