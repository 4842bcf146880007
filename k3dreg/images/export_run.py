"""One run of `docker save`, whose blobs can be sent while they arrive."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, closing

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.image import EngineImage
from k3dreg.docker.interfaces import IEngine
from k3dreg.formats.image_archive import BlobBegin
from k3dreg.images.export_archive import ExportArchive
from k3dreg.images.export_contents import ExportContents, Kept, contents_of
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown, ContentError, EngineUnavailable, K3dregError, StoreError
from k3dreg.reporting.activity import Activity, Progress
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.observer import NULL_OBSERVER, IObserver, observed
from k3dreg.store.arrivals import Arrival, Arrivals
from k3dreg.store.interfaces import IBlobStore
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.outcome import Outcome, Waiters
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
        arrivals: Arrivals,
        workers: Workers,
        clock: IReactorTime,
        slots: DeferredSemaphore,
        observer: IObserver = NULL_OBSERVER,
    ) -> None:
        self._observer = observer
        self.image = image
        self.seconds = 0.0
        self.received = 0
        self._name = ", ".join(image.tags) or str(image.id)
        self._started = 0.0
        self._engine = engine
        self._store = store
        self._arrivals = arrivals
        self._workers = workers
        self._clock = clock
        self._slots = slots
        self._contents: Outcome[ExportContents] = Outcome()
        self._moved: Waiters[None] = Waiters()
        self._reported = 0.0  # time of the last log line
        self._running: Deferred[ExportContents] | None = None

    def contents(self) -> Deferred[ExportContents]:
        """Return what the export contained, after its success.  Fails as the export fails."""
        return self._contents.wait()

    async def blob(self, digest: Digest) -> IBlob:
        """Return a part of the image as soon as its first bytes have arrived.

        Raises `BlobUnknown` when the export has ended without it, or the error with which the export failed.
        """
        while (blob := self._arrivals.find(digest)) is None:
            if self._contents.is_set:
                await self._contents.wait()  # raises if the export failed
                raise BlobUnknown(f"Docker's export did not hold {digest}")
            await self._moved.add()
        return blob

    def cancel(self) -> None:
        """Cancel the export.  Callers that wait for it get `EngineUnavailable`."""
        if self._running is not None:
            self._running.cancel()

    def run(self) -> Deferred[ExportContents]:
        """Run the export; fires with its contents, or fails, after all callers that wait were told."""
        self._running = Deferred.fromCoroutine(self._run())
        return self._running

    async def _run(self) -> ExportContents:
        try:
            async with self._slots:
                return await self._export()
        except CancelledError:
            self._fail(EngineUnavailable(f"the export of {self._name} was cancelled: k3dreg is stopping"))
            raise

    async def _export(self) -> ExportContents:
        name = self._name
        self._started = self._reported = self._clock.seconds()
        try:
            log.info("exporting {name} ({id}) from Docker", name=name, id=self.image.id.short)
            # The engine does not say the archive's size; the image's size is close to it.
            activity = Activity(
                "export", name, self._started, lambda: Progress(self.received, self.image.size), self._count_waiters
            )
            with observed(self._observer, activity, self._clock):
                contents = await self._transfer()
        except StoreError as error:
            refused = type(error)(
                f"Docker's export of {name} has to be written to the disk before it can be served, and {error}",
                advice=_NO_ROOM_ADVICE,
            )
            log.error("{error}", error=refused.explained)
            self._fail(refused)
            raise refused from error
        except K3dregError as error:
            log.error("exporting {name} failed: {error}", name=name, error=error.explained)
            self._fail(error)
            raise
        except Exception:
            self._fail(ContentError(f"the export of {name} failed inside k3dreg; its log says where"))
            raise
        finally:
            self.seconds = self._clock.seconds() - self._started
        log.info(
            "exported {name}: {size:.0f} MB in {seconds:.1f} s, {parts} blobs",
            name=name,
            size=self.received / 1e6,
            seconds=self.seconds,
            parts=len(contents.present),
        )
        self._contents.succeed(contents)
        self._move()
        return contents

    async def _transfer(self) -> ExportContents:
        stream = await self._engine.save(self.image.id)
        archive = ExportArchive(stream, self._workers, self._count)
        members: dict[str, Kept] = {}
        # The blobs are held, so that even a small cache evicts none before the end.
        with closing(stream), ExitStack() as held:
            while (begun := await archive.next()) is not None:
                members[begun.name] = await self._keep(archive, begun, held)
                self._move()
            contents = await contents_of(self.image, archive.finish(), members, self._store, self._workers)
            await self._drop_unreferenced(members.values(), contents)
            return contents

    async def _keep(self, archive: ExportArchive, begun: BlobBegin, held: ExitStack) -> Kept:
        """Bring a blob of the archive into the store, and let `held` release it."""

        async def fill(arrival: Arrival) -> None:
            while data := await archive.read():
                await arrival.write(data)
                # Most blobs are small, and end in the piece in which they begin: they are not sent while they arrive.
                if arrival.blob is None and begun.digest is not None and arrival.written < begun.size:
                    await arrival.begin(begun.size)
                    self._move()

        if begun.digest is not None:
            # Held before the store is asked: otherwise the blob could be evicted meanwhile, and its bytes be skipped.
            held.callback(self._store.hold([begun.digest]))
            if self._store.get(begun.digest) is not None:
                return Kept(begun.digest, begun.size, was_here=True)
        blob = await self._arrivals.bring(begun.digest, fill)
        if begun.digest is None:
            held.callback(self._store.hold([blob.digest]))
        return Kept(blob.digest, begun.size, was_here=False)

    def _count(self, size: int) -> None:
        self.received += size
        now = self._clock.seconds()
        if now - self._reported >= _REPORT_EVERY:
            self._reported = now
            log.info(
                "exporting {name}: {size:.0f} MB so far, {seconds:.0f} s",
                name=self._name,
                size=self.received / 1e6,
                seconds=now - self._started,
            )

    def _count_waiters(self) -> int:
        return self._contents.waiting + len(self._moved)

    def _move(self) -> None:
        """Let `blob` look again: a blob has begun, is kept, or will never come."""
        moved, self._moved = self._moved, Waiters()
        moved.deliver(None)

    def _fail(self, error: K3dregError) -> None:
        self._contents.fail(error)
        self._move()

    async def _drop_unreferenced(self, members: Iterable[Kept], contents: ExportContents) -> None:
        """Remove exported blobs that are no part of the image.

        The classic store's export has a legacy config for each layer, and a manifest that nodes never see.
        """
        for kept in members:
            if kept.digest not in contents.present and not kept.was_here:
                await self._store.discard(kept.digest)
