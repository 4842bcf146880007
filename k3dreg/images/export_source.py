"""The source that needs no access to the engine's files: `docker save`, parsed as it arrives and kept in the store."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from k3dreg.docker.image import EngineImage
from k3dreg.docker.interfaces import IEngine
from k3dreg.images.content_map import ContentMap
from k3dreg.images.export_contents import check_complete
from k3dreg.images.export_run import Export
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown, ImageNotInEngine, K3dregError, ManifestUnknown
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.observer import NULL_OBSERVER, IObserver
from k3dreg.reporting.trace import Trace
from k3dreg.store.arrivals import Arrivals
from k3dreg.store.interfaces import IBlobStore
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.negative_cache import NegativeCache
from k3dreg.streaming.workers import Workers

log = make_logger()

# The engine has no limit of its own, and simultaneous exports slow each other down: measured on two processors, four
# at once took three times as long as one.  With the classic store each makes a full copy on the engine's disk.
_EXPORTS_AT_ONCE = 2
# Seconds for which an image is not exported again if a complete export did not contain it.  The image's content does
# not change, except when a layer that was damaged on the engine's disk is replaced by a new pull.
_REFUSED_FOR = 3600.0


class ExportSource:
    """Serves images by exporting them from the engine.  Implements `IImageSource`.

    Simultaneous requests share one export per image.  Its blobs stay in the store, and its contents in the content
    map, across restarts.
    """

    name = "export"
    at_hand = False

    def __init__(
        self,
        engine: IEngine,
        store: IBlobStore,
        arrivals: Arrivals,
        content_map: ContentMap,
        workers: Workers,
        clock: IReactorTime,
        observer: IObserver = NULL_OBSERVER,
    ) -> None:
        self._observer = observer
        self._engine = engine
        self._store = store
        self._arrivals = arrivals
        self._map = content_map
        self._workers = workers
        self._clock = clock
        self._slots = DeferredSemaphore(_EXPORTS_AT_ONCE)
        self._exports: dict[Digest, Export] = {}
        # By an image's fingerprint and the engine's version, because another version may write another archive.
        self._refused: NegativeCache[tuple[str, str]] = NegativeCache(clock)

    async def root(self, image: EngineImage, trace: Trace) -> Descriptor:
        """Return the engine's own root descriptor, or that of the manifest that k3dreg makes after an export.

        Raises `ImageIncomplete` when no platform of the image is whole, `ManifestUnknown` when exports do not contain
        the image, and what the export failed with.
        """
        check_complete(image)
        known = self._map.root_of(image) or image.descriptor
        if known is not None:
            if self._map.root_of(image, self.name) is None:
                await self._map.record(self.name, image, known, {known.digest: known.size})
            return known
        export = await self._join(image)
        contents = await export.contents()
        trace.step(f"export {export.seconds:.1f}s")
        return contents.root

    async def open(self, image: EngineImage, digest: Digest, trace: Trace) -> IBlob:
        """Return a part of the image: from the store, from an export under way, or from a new export.

        Raises `BlobUnknown` when the engine does not hold it, and what the export failed with.
        """
        blob = self._store.get(digest)
        if blob is not None:
            trace.source = trace.source or "cache"
            return blob
        export = self._exports.get(image.id)
        if export is None:
            try:
                # The image may have changed, or have been removed, since it was recorded.
                image = await self._engine.inspect(str(image.id))
            except ImageNotInEngine:
                await self._map.forget(image.id)
                raise BlobUnknown(f"Docker no longer has the image of {digest}") from None
            if self._is_absent(image, digest):
                raise BlobUnknown(f"Docker does not hold {digest}, which is part of an image it has")
            export = await self._join(image)
        trace.source = "export"
        return await export.blob(digest)

    def shutdown(self) -> None:
        """Cancel all exports."""
        for export in list(self._exports.values()):
            export.cancel()

    def _is_absent(self, image: EngineImage, digest: Digest) -> bool:
        if any(child.descriptor.digest == digest and not child.available for child in image.children):
            return True
        # Another export would lack it, too, as long as the fingerprint is the same.
        return self._map.is_absent(image, digest)

    async def _join(self, image: EngineImage) -> Export:
        """Return the export of the image that is under way, or start one.

        Raises the cached error if a complete export did not contain the image within the last `_REFUSED_FOR` seconds.
        """
        key = (image.fingerprint, (await self._engine.info()).version)
        export = self._exports.get(image.id)
        if export is None:
            self._refused.check(key)
            export = self._exports[image.id] = Export(
                image,
                self._engine,
                self._store,
                self._arrivals,
                self._workers,
                self._clock,
                self._slots,
                self._observer,
            )
            Deferred.fromCoroutine(self._watch(export, key)).addErrback(
                lambda failure: log.failure("an export failed with an unexpected error", failure=failure)
            )
        return export

    async def _watch(self, export: Export, key: tuple[str, str]) -> None:
        """Run the export and record its contents, or cache its error."""
        try:
            contents = await export.run()
            # Recorded before the export is removed from `_exports`: a request in between would start a second export.
            await self._map.record(self.name, export.image, contents.root, contents.present, contents.absent)
        except ManifestUnknown as error:
            self._refused.remember(key, error, _REFUSED_FOR)
        except (K3dregError, CancelledError):
            pass  # `Export` logs errors and passes them to its callers
        finally:
            del self._exports[export.image.id]
