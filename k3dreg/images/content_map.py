"""Which of the engine's images has which content: tables of the state directory's database.

Sources record the images that they have examined or exported, and `EngineContent` the parts of the manifests that it
serves.  The map survives a restart, so that a node gets the blobs of a manifest that it got before.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping

from twisted.internet.defer import Deferred, DeferredLock

from k3dreg.docker.image import EngineImage
from k3dreg.images.image_json import image_from_json, image_to_json
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import StoreError
from k3dreg.reporting.logger import make_logger
from k3dreg.store.database import Database, DatabaseConnection, Statement, Tables, Values, open_in_memory
from k3dreg.streaming.workers import Workers

log = make_logger()

# Images recorded at most.  Each takes some KB on the disk.  Of more images in use, k3dreg exports some again.
MOST_IMAGES = 2000
# Seconds after which a use of an image is recorded again.  Without a limit, each HEAD of a tag would write to the disk.
_SEEN_EVERY = 10.0

# engine_image.root: NULL if the image lacks content.  engine_image.source: the source that examined the image when it
# had `fingerprint`, or ''.  engine_part.absent: the image's fingerprint when an export lacked this part, or NULL.
CONTENT_TABLES = Tables(
    "content",
    1,
    (
        "CREATE TABLE engine_image (id TEXT PRIMARY KEY, seen REAL, source TEXT, fingerprint TEXT, root TEXT,"
        " image TEXT)",
        "CREATE TABLE engine_part (image TEXT, digest TEXT, size INTEGER, absent TEXT,"
        " PRIMARY KEY (image, digest)) WITHOUT ROWID",
        "CREATE INDEX engine_part_digest ON engine_part (digest)",
    ),
)

_RECORD = """
    INSERT INTO engine_image VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET seen=excluded.seen,
    source=excluded.source, fingerprint=excluded.fingerprint, root=excluded.root, image=excluded.image
"""
_RECORD_PART = """
    INSERT INTO engine_part VALUES (?, ?, ?, ?)
    ON CONFLICT (image, digest) DO UPDATE SET size=excluded.size, absent=excluded.absent
"""
_RECORD_CHILD = """
    INSERT OR IGNORE INTO engine_part SELECT image, ?, ?, NULL FROM engine_part WHERE digest=?
"""
_OLDEST = "SELECT id FROM engine_image ORDER BY seen DESC, id DESC LIMIT -1 OFFSET ?"
_DROP_OLDEST = (
    f"DELETE FROM engine_part WHERE image IN ({_OLDEST})",  # noqa: S608
    f"DELETE FROM engine_image WHERE id IN ({_OLDEST})",  # noqa: S608
)
# Statements that insert what a query reads from the same table of another database.
_COPY = (
    ("INSERT INTO engine_image VALUES (?,?,?,?,?,?)", "SELECT * FROM engine_image"),
    ("INSERT INTO engine_part VALUES (?,?,?,?)", "SELECT * FROM engine_part"),
)
_NEXT_IMAGE = """
    SELECT seen, id, engine_image.image FROM engine_part JOIN engine_image ON id = engine_part.image
    WHERE digest=? AND (seen, id) < (?, ?) ORDER BY seen DESC, id DESC LIMIT 1
"""
_SIZE = """
    SELECT size FROM engine_part JOIN engine_image ON id = engine_part.image
    WHERE digest=? ORDER BY seen DESC LIMIT 1
"""


class ContentMap:
    """Answers which images have a digest, how large it is, and what an image's root is.

    Answers are queries for single rows in the reactor's thread.  Changes are written in a worker thread and known when
    the method has returned; cancelling it does not undo them.

    The map is a cache, so errors of the database are logged and not raised.  When the database cannot be written, the
    map continues with a copy in memory until k3dreg stops: a pull needs what its first requests have recorded.

    An image's ID is a digest that determines all its parts, so parts are added to an image and never removed from it.
    """

    def __init__(self, database: Database | DatabaseConnection, workers: Workers, limit: int = MOST_IMAGES) -> None:
        """`database` must have `CONTENT_TABLES`.

        Beyond `limit`, the images that were seen longest ago are dropped.  An image counts as seen when `record` or
        `root_of` is called for it.
        """
        self._database = database
        self._workers = workers
        self._limit = limit
        self._turn = DeferredLock()
        self._complaint = ""  # the last error that was logged

    # -- answers --------------------------------------------------------------------------------

    def images_with(self, digest: Digest) -> Iterator[EngineImage]:
        """Yield the images that `digest` is a part of, most recently seen first.  Changes may be made meanwhile."""
        seen, image = math.inf, ""
        while row := self._row(_NEXT_IMAGE, str(digest), seen, image):
            seen, image, text = row
            yield image_from_json(json.loads(text))

    def knows(self, digest: Digest) -> bool:
        """Return whether the digest is known to be a part of an image in the engine."""
        return self._row("SELECT 1 FROM engine_part WHERE digest=? LIMIT 1", str(digest)) is not None

    def size_of(self, digest: Digest) -> int | None:
        """Return the size of a part in bytes, according to its most recently seen image; None if it is not known."""
        row = self._row(_SIZE, str(digest))
        return None if row is None else int(row[0])

    def size_in(self, image: EngineImage, digest: Digest) -> int | None:
        """Return the size of a part in bytes, according to the image; None if it is not known as its part."""
        row = self._row("SELECT size FROM engine_part WHERE image=? AND digest=?", str(image.id), str(digest))
        return None if row is None else int(row[0])

    def root_of(self, image: EngineImage, source: str = "") -> Descriptor | None:
        """Return the root recorded for the image's ID, or None if it is not recorded or the image lacks content.

        `source`: only what this source has recorded, for an image of this fingerprint.
        """
        row = self._row("SELECT root, source, fingerprint, seen FROM engine_image WHERE id=?", str(image.id))
        if row is None:
            return None
        root, recorded_by, fingerprint, seen = row
        if root is None or (source and (recorded_by, fingerprint) != (source, image.fingerprint)):
            return None
        now = self._workers.clock.seconds()
        if not seen <= now < seen + _SEEN_EVERY:
            self._begin(("UPDATE engine_image SET seen=? WHERE id=?", (now, str(image.id))))
        return Descriptor.from_json(json.loads(root))

    def is_absent(self, image: EngineImage, digest: Digest) -> bool:
        """Return whether an export of the image, with this fingerprint, lacked the part."""
        query = "SELECT 1 FROM engine_part WHERE image=? AND digest=? AND absent=?"
        return self._row(query, str(image.id), str(digest), image.fingerprint) is not None

    # -- changes --------------------------------------------------------------------------------

    async def record(
        self,
        source: str,
        image: EngineImage,
        root: Descriptor | None,
        parts: Mapping[Digest, int],
        absent: Mapping[Digest, int] | None = None,
    ) -> None:
        """Record what `source` has found out about an image, in place of what was recorded of it.

        `root`: None if the image lacks content, so that it must be examined again.  `parts` and `absent` are sizes in
        bytes; `absent` are parts that an export of the image lacked.
        """
        texts = str(image.id), image.fingerprint
        described = None if root is None else json.dumps(root.to_json())
        row = (texts[0], self._workers.clock.seconds(), source, texts[1], described, json.dumps(image_to_json(image)))
        statements: list[Statement] = [(_RECORD, row)]
        statements += [(_RECORD_PART, (texts[0], str(digest), size, None)) for digest, size in parts.items()]
        if absent is not None:
            statements += [(_RECORD_PART, (texts[0], str(part), size, texts[1])) for part, size in absent.items()]
        await self._write(*statements, *((sql, (self._limit,)) for sql in _DROP_OLDEST))

    async def record_children(self, manifest: Digest, children: Iterable[Descriptor]) -> None:
        """Record the parts that a manifest refers to as parts of all images that have the manifest."""
        await self._write(*((_RECORD_CHILD, (str(c.digest), c.size, str(manifest))) for c in children))

    async def expire(self, source: str, image: EngineImage) -> None:
        """Let `root_of` with this source return None until the source records the image again."""
        if self._row("SELECT 1 FROM engine_image WHERE id=? AND source=?", str(image.id), source) is not None:
            await self._write(("UPDATE engine_image SET source='' WHERE id=? AND source=?", (str(image.id), source)))

    async def forget(self, image: Digest) -> None:
        """Drop an image that the engine does not hold any more.  An unknown ID is no error."""
        await self._write(
            ("DELETE FROM engine_part WHERE image=?", (str(image),)),
            ("DELETE FROM engine_image WHERE id=?", (str(image),)),
        )

    # -- the database ---------------------------------------------------------------------------

    def _row(self, sql: str, *parameters: object) -> Values | None:
        try:
            return self._database.row(sql, parameters)
        except StoreError as error:
            self._complain(error)
            return None

    def _begin(self, *statements: Statement) -> None:
        writing = Deferred.fromCoroutine(self._write(*statements))
        writing.addErrback(lambda failure: log.failure("recording an image", failure=failure))

    async def _write(self, *statements: Statement) -> None:
        await self._turn.acquire()
        try:
            try:
                await self._workers.run(self._database.transact, statements)
            except StoreError as error:
                self._database = await self._workers.run(in_memory, self._database)
                self._complain(error)
                await self._workers.run(self._database.transact, statements)
        except StoreError as error:
            log.debug("an image was not recorded: {error}", error=error)  # k3dreg is stopping
        finally:
            self._turn.release()

    def _complain(self, error: StoreError) -> None:
        if str(error) != self._complaint:
            self._complaint = str(error)
            log.warn(
                "k3dreg keeps its records of images in memory only, until it is restarted: {error}",
                error=error.explained,
            )


def in_memory(source: Database | DatabaseConnection | None = None) -> DatabaseConnection:
    """Return a database in memory with what can be read of the tables of `source`; if it is given, this blocks."""
    memory = open_in_memory((CONTENT_TABLES,))
    if source is not None:
        with contextlib.suppress(StoreError):
            for insert, query in _COPY:
                memory.transact([(insert, row) for row in source.rows(query)])
    return memory
