"""Which content belongs to which image: one small JSON file per image, `images/<ID's digits>.json`."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import frozen

from k3dreg.docker.image import EngineImage
from k3dreg.images.image_json import image_from_json, image_to_json
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import K3dregError, StoreError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.durable_files import storage_errors, write_whole
from k3dreg.streaming.workers import Workers

log = make_logger()

# Images remembered.  Each takes some KB of memory; whoever has more than this in use at once exports some twice.
MOST_IMAGES = 2000
_VERSION = 1


@frozen
class _Record:
    image: EngineImage
    root: Descriptor
    contents: frozenset[Digest]

    def to_json(self) -> bytes:
        value = {
            "version": _VERSION,
            "image": image_to_json(self.image),
            "root": self.root.to_json(),
            "contents": sorted(map(str, self.contents)),
        }
        return json.dumps(value).encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> _Record:
        """Raises `K3dregError`, or what Python raises, for anything that `to_json` did not make."""
        value = json.loads(data)
        if value["version"] != _VERSION:
            raise ValueError("another version")
        contents = frozenset(map(Digest.parse, value["contents"]))
        return cls(image_from_json(value["image"]), Descriptor.from_json(value["root"]), contents)


class Catalogue:
    """Made by `open_catalogue`.  Remembers `limit` images, and drops those that were seen longest ago.

    An image is seen when it is recorded, or asked about by `root_of` or `is_recorded`.
    """

    def __init__(self, directory: Path, staging: Path, workers: Workers, limit: int = MOST_IMAGES) -> None:
        self._directory = directory
        self._staging = staging
        self._workers = workers
        self._limit = limit
        self._records: dict[Digest, _Record] = {}  # by image ID; seen longest ago first
        self._seen: dict[Digest, int] = {}  # image ID -> the higher, the later
        self._images: dict[Digest, set[Digest]] = {}  # content -> image IDs
        self._count = itertools.count()
        self._files = threading.Lock()
        self._complaint = ""  # the last that was logged, until a write succeeds

    def images_with(self, digest: Digest) -> Sequence[EngineImage]:
        """The images that `digest` is part of, most recently seen first.  No I/O."""
        ids = sorted(self._images.get(digest, ()), key=self._seen.__getitem__, reverse=True)
        return [self._records[image].image for image in ids]

    def root_of(self, image: EngineImage) -> Descriptor | None:
        """The root recorded for the image ID, if any.  No I/O."""
        record = self._records.get(image.id)
        if record is None:
            return None
        self._see(image.id)
        return record.root

    def is_recorded(self, image: EngineImage) -> bool:
        """Whether `record` was called for this very `fingerprint`.  No I/O."""
        record = self._records.get(image.id)
        if record is None:
            return False
        self._see(image.id)
        return record.image.fingerprint == image.fingerprint

    async def record(self, image: EngineImage, root: Descriptor, contents: Iterable[Digest]) -> None:
        """Remember an image, in place of what was known of the same ID.

        Known at once; on disk when it returns.  What cannot be written is logged, and known until the next start.
        Cancelling does not undo it.
        """
        self._add(_Record(image, root, frozenset(contents)))
        dropped = self._shrink()
        await self._write([image.id, *dropped])

    async def forget(self, image: Digest) -> None:
        """The engine does not hold the image any more.  One that is not known is no error."""
        if image in self._records:
            self._remove(image)
            await self._write([image])

    async def _write(self, images: list[Digest]) -> None:
        """Write what is known of `images`.  It is a cache: that it cannot be written fails no request."""
        try:
            await self._workers.run(self._flush, images)
        except StoreError as error:
            if str(error) != self._complaint:
                log.warn(
                    "k3dreg could not save its records of images: {error} {advice}", error=error, advice=error.advice
                )
            self._complaint = str(error)
        else:
            self._complaint = ""

    def load(self, records: Iterable[_Record]) -> None:
        """What was on disk, seen longest ago first.  For `open_catalogue`."""
        for record in records:
            self._add(record)
        dropped = self._shrink()
        if dropped:
            self._workers.spare(self._flush, dropped)

    def read_all(self) -> list[_Record]:
        """Everything on disk, oldest first; what is damaged is removed.  Blocks.  Raises `StoreError`."""
        found: list[tuple[float, _Record]] = []
        with storage_errors("reading what is known of images"):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._staging.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self._directory.glob("*.json"):
                data, recorded = path.read_bytes(), path.stat().st_mtime
                try:
                    record = _Record.from_json(data)
                except (K3dregError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    record = None
                if record is not None and path == self._path_of(record.image.id):
                    found.append((recorded, record))
                else:
                    log.warn("the record of image {name} is damaged; k3dreg removed it", name=path.stem[:12])
                    path.unlink(missing_ok=True)
        found.sort(key=lambda pair: pair[0])
        return [record for _, record in found]

    def _path_of(self, image: Digest) -> Path:
        return self._directory / f"{image.hex}.json"

    def _see(self, image: Digest) -> None:
        self._records[image] = self._records.pop(image)
        self._seen[image] = next(self._count)

    def _add(self, record: _Record) -> None:
        image = record.image.id
        if image in self._records:
            self._remove(image)
        self._records[image] = record
        self._seen[image] = next(self._count)
        for digest in record.contents:
            self._images.setdefault(digest, set()).add(image)

    def _remove(self, image: Digest) -> None:
        record = self._records.pop(image)
        del self._seen[image]
        for digest in record.contents:
            images = self._images[digest]
            images.discard(image)
            if not images:
                del self._images[digest]

    def _shrink(self) -> list[Digest]:
        dropped = list(itertools.islice(self._records, max(0, len(self._records) - self._limit)))
        for image in dropped:
            self._remove(image)
        return dropped

    def _flush(self, images: list[Digest]) -> None:
        """In a worker thread: make the files say what is known *now*, so it does not matter which of two comes last."""
        with self._files, storage_errors("recording an image"):
            for image in images:
                record = self._records.get(image)
                if record is None:
                    self._path_of(image).unlink(missing_ok=True)
                else:
                    write_whole(self._path_of(image), self._staging / f"image-{image.hex}", record.to_json())


async def open_catalogue(root: Path, workers: Workers, limit: int = MOST_IMAGES) -> Catalogue:
    """The catalogue in the state directory `root`, which a store has been opened in.  Raises `StoreError`."""
    catalogue = Catalogue(root / "images", root / "staging", workers, limit)
    catalogue.load(await workers.run(catalogue.read_all))
    return catalogue
