"""Assemble one layer of the classic store from its files."""

from __future__ import annotations

import re

from attrs import frozen
from twisted.internet.defer import DeferredSemaphore

from k3dreg.engine_files.engine_files import IEngineFiles
from k3dreg.engine_files.layout import LayerPaths
from k3dreg.images.layer_assembly import LARGEST_TAR_SPLIT, LayerAssembly
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, FileAbsent
from k3dreg.store.arrivals import Arrival
from k3dreg.streaming.workers import Workers

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


@frozen
class LayerBuild:
    """The assembly of one layer.  `slots` limits how many are assembled at once."""

    files: IEngineFiles
    workers: Workers
    slots: DeferredSemaphore
    paths: LayerPaths
    layer: Layer

    async def directory(self) -> str:
        """Return the path of the layer's files.

        Raises `FileAbsent`, `FilesUnreachable` or `ContentError` when the directory is missing or unreadable.
        """
        cache_id = (await self.files.read(self.paths.about(self.layer.chain, "cache-id"), 256)).strip()
        if not _CACHE_ID.fullmatch(cache_id) or cache_id.startswith(b"."):
            raise ContentError("a layer's cache-id is no name of a directory")
        directory = self.paths.files(cache_id.decode("ascii"))
        if not (await self.files.stat(directory)).is_directory:
            raise FileAbsent("a layer has no directory of files")
        return directory

    async def assemble(self, directory: str, arrival: Arrival) -> None:
        """Write and verify the whole tar.

        Raises `ContentError`, `FileAbsent`, `FilesUnreachable`, and as `Arrival.verify`.
        """
        async with self.slots:
            tar_split = await self.files.read(
                self.paths.about(self.layer.chain, "tar-split.json.gz"), LARGEST_TAR_SPLIT
            )
            assembly = LayerAssembly(tar_split, arrival.writer.write)
            await self.workers.run(assembly.begin)
            await arrival.advance()
            if assembly.wanted is not None:
                await self.files.fill(directory, assembly, arrival.advance)
                await arrival.advance()
            await arrival.verify()
