"""Assemble one layer into the store; its blob can be sent from the beginning while the end is still missing."""

from __future__ import annotations

import re
from collections.abc import Callable

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, succeed

from k3dreg.engine_files.engine_files import IEngineFiles
from k3dreg.engine_files.layout import LayerPaths
from k3dreg.images.layer_assembly import LARGEST_TAR_SPLIT, LayerAssembly
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, EngineUnavailable, FileAbsent, K3dregError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.arrivals import Arrival
from k3dreg.store.interfaces import IBlobStore
from k3dreg.streaming.workers import Workers

log = make_logger()

# The name that Docker generated for a layer's directory: 64 hex digits, with "-init" for a container's init layer.
_CACHE_ID = re.compile(rb"[a-zA-Z0-9_.-]{1,255}")


@frozen
class Layer:
    """A layer of an image in the classic store.

    `chain`: its chain ID, the layer's name in that store.  `diff_id`: the digest of its tar, which has `size` bytes.
    """

    chain: Digest
    diff_id: Digest
    size: int


class LayerBuild:
    """The assembly of one layer.  Create it by `begin`, then call `start`; `blob` is the layer.

    It ends by itself, or by `cancel`.
    """

    def __init__(
        self,
        files: IEngineFiles,
        store: IBlobStore,
        workers: Workers,
        slots: DeferredSemaphore,
        directory: str,
        tar_split: str,
        arrival: Arrival,
    ) -> None:
        self.blob = arrival.blob
        self._files = files
        self._store = store
        self._workers = workers
        self._slots = slots
        self._directory = directory
        self._tar_split = tar_split
        self._arrival = arrival
        self._running: Deferred[None] | None = None

    @classmethod
    async def begin(
        cls,
        files: IEngineFiles,
        store: IBlobStore,
        workers: Workers,
        slots: DeferredSemaphore,
        paths: LayerPaths,
        layer: Layer,
    ) -> LayerBuild:
        """Return a build whose `blob` clients may already read, before anything is read of the layer's files.

        Raises `FileAbsent`, `FilesUnreachable` or `ContentError` when the layer's directory is missing or unreadable.
        """
        cache_id = (await files.read(paths.about(layer.chain, "cache-id"), 256)).strip()
        if not _CACHE_ID.fullmatch(cache_id) or cache_id.startswith(b"."):
            raise ContentError("a layer's cache-id is no name of a directory")
        directory = paths.files(cache_id.decode("ascii"))
        if not (await files.stat(directory)).is_directory:
            raise FileAbsent("a layer has no directory of files")
        writer = await workers.acquire(store.passing_writer, lambda writer: writer.abort(), layer.diff_id.algorithm)
        try:
            arrival = await Arrival.begin(workers, writer, layer.diff_id, layer.size)
        except BaseException:
            workers.clean_up(writer.abort)
            raise
        tar_split = paths.about(layer.chain, "tar-split.json.gz")
        return cls(files, store, workers, slots, directory, tar_split, arrival)

    def start(self, ended: Callable[[Exception | None], None]) -> None:
        """Assemble the layer.  `ended` is called once at the end, with None or with the error."""
        self._running = Deferred.fromCoroutine(self._run(ended))

    def cancel(self) -> Deferred[None]:
        """Cancel the assembly; fires when it has ended."""
        if self._running is None:
            return succeed(None)
        self._running.cancel()
        return self._running

    async def _run(self, ended: Callable[[Exception | None], None]) -> None:
        error: Exception | None = None
        try:
            await self._slots.acquire()
            try:
                await self._put_together()
                await self._arrival.verify()
            finally:
                self._slots.release()
        except CancelledError:
            error = EngineUnavailable("k3dreg is stopping")
        except K3dregError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001  (the blob's readers must get any error)
            log.failure("assembling a layer failed inside k3dreg")
            error = failure
        # Called before the readers get the result: a reader that asks again at once must not get this build.
        ended(error)
        if error is None:
            self._arrival.finish(self._store)
        else:
            self.blob.fail(error)
            self._workers.clean_up(self._arrival.writer.abort)

    async def _put_together(self) -> None:
        """Write the whole tar.  Raises `ContentError`, `FileAbsent`, `FilesUnreachable`, and as `Arrival.advance`."""
        tar_split = await self._files.read(self._tar_split, LARGEST_TAR_SPLIT)
        assembly = LayerAssembly(tar_split, self._arrival.writer.write)
        await self._workers.run(assembly.begin)
        await self._arrival.advance()
        if assembly.wanted is not None:
            await self._files.fill(self._directory, assembly, self._arrival.advance)
            await self._arrival.advance()
