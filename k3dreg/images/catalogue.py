"""Record which content belongs to which image: one small JSON file per image, `images/<hex digits of its ID>.json`."""

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

# Images recorded at most.  Each takes some KB of memory.  Of more images in use, k3dreg exports some again.
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
        """Parse the JSON of `to_json`.

        Raises `K3dregError`, or Python's errors for a wrong type or a missing key, for any other bytes.
        """
        value = json.loads(data)
        if value["version"] != _VERSION:
            raise ValueError("another version")
        contents = frozenset(map(Digest.parse, value["contents"]))
        return cls(image_from_json(value["image"]), Descriptor.from_json(value["root"]), contents)


class Catalogue:
    """The records of up to `limit` images, in memory and on disk.  Implements `ICatalogue`.

    Create it by `open_catalogue`.  Beyond `limit`, the records of the images that were seen longest ago are dropped.
    An image counts as seen when `record`, `root_of` or `is_recorded` is called for it.
    """

    def __init__(self, directory: Path, staging: Path, workers: Workers, limit: int = MOST_IMAGES) -> None:
        self._directory = directory
        self._staging = staging
        self._workers = workers
        self._limit = limit
        self._records: dict[Digest, _Record] = {}  # by image ID; seen longest ago first
        self._seen: dict[Digest, int] = {}  # by image ID; a higher number was seen later
        self._images: dict[Digest, set[Digest]] = {}  # image IDs by the digest of content
        self._count = itertools.count()
        self._files = threading.Lock()
        self._complaint = ""  # the last error that was logged; "" after a write succeeded

    def images_with(self, digest: Digest) -> Sequence[EngineImage]:
        """Return the images that `digest` is a part of, most recently seen first.  No I/O."""
        ids = sorted(self._images.get(digest, ()), key=self._seen.__getitem__, reverse=True)
        return [self._records[image].image for image in ids]

    def root_of(self, image: EngineImage) -> Descriptor | None:
        """Return the root recorded for the image's ID, or None.  No I/O."""
        record = self._records.get(image.id)
        if record is None:
            return None
        self._see(image.id)
        return record.root

    def is_recorded(self, image: EngineImage) -> bool:
        """Return whether an image of this ID and `fingerprint` is recorded.  No I/O."""
        record = self._records.get(image.id)
        if record is None:
            return False
        self._see(image.id)
        return record.image.fingerprint == image.fingerprint

    async def record(self, image: EngineImage, root: Descriptor, contents: Iterable[Digest]) -> None:
        """Record an image, in place of the record of the same ID.

        The record is in memory at once and on disk when this returns.  If it cannot be written, that is logged and the
        record is lost at the next start.  Cancelling does not undo it.
        """
        self._add(_Record(image, root, frozenset(contents)))
        dropped = self._shrink()
        await self._write([image.id, *dropped])

    async def forget(self, image: Digest) -> None:
        """Drop the record of an image that the engine does not hold any more.  An unknown ID is no error."""
        if image in self._records:
            self._remove(image)
            await self._write([image])

    async def _write(self, images: list[Digest]) -> None:
        """Write or remove the files of `images`.  A failure is only logged, because the records are a cache."""
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
        """Add the records that were on disk, seen longest ago first.  Only `open_catalogue` calls it."""
        for record in records:
            self._add(record)
        dropped = self._shrink()
        if dropped:
            self._workers.spare(self._flush, dropped)

    def read_all(self) -> list[_Record]:
        """Return all records on disk, oldest first, and remove damaged ones.  Blocks.  Raises `StoreError`."""
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
        """Make the files match the records of this moment.  Called in a worker thread.

        So two calls may run in any order: neither writes a record that is out of date.
        """
        with self._files, storage_errors("recording an image"):
            for image in images:
                record = self._records.get(image)
                if record is None:
                    self._path_of(image).unlink(missing_ok=True)
                else:
                    write_whole(self._path_of(image), self._staging / f"image-{image.hex}", record.to_json())


async def open_catalogue(root: Path, workers: Workers, limit: int = MOST_IMAGES) -> Catalogue:
    """Open the catalogue in the state directory `root`, which the caller has locked.  Raises `StoreError`."""
    catalogue = Catalogue(root / "images", root / "staging", workers, limit)
    catalogue.load(await workers.run(catalogue.read_all))
    return catalogue
