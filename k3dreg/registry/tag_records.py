"""What is known of tags of other registries: a table of the state directory's database.

The record says which image of Docker's is known to be the registry's, and what the registry said last.  It survives a
restart, and `k3dreg why` and `k3dreg refresh` read it beside a running daemon.
"""

from __future__ import annotations

from attrs import frozen
from cachetools import LRUCache

from k3dreg.docker.image import EngineImage
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import StoreError
from k3dreg.oci.reference import Reference
from k3dreg.reporting.logger import make_logger
from k3dreg.store.database import Database, DatabaseConnection, Tables
from k3dreg.streaming.workers import Workers

log = make_logger()

# Tags recorded at most, some hundred bytes each.  Beyond it, the tags that were asked about longest ago are dropped.
MOST_TAGS = 5000

TAG_TABLES = Tables(
    "tags of registries",
    1,
    (
        "CREATE TABLE registry_tag (reference TEXT PRIMARY KEY, image TEXT, digest TEXT, asked REAL) WITHOUT ROWID",
        "CREATE INDEX registry_tag_asked ON registry_tag (asked)",
    ),
)

_FIND = "SELECT image, digest, asked FROM registry_tag WHERE reference=?"
_RECORD = "INSERT OR REPLACE INTO registry_tag VALUES (?, ?, ?, ?)"
_DROP_OLDEST = """
    DELETE FROM registry_tag WHERE reference IN
    (SELECT reference FROM registry_tag ORDER BY asked DESC LIMIT -1 OFFSET ?)
"""


@frozen
class TagRecord:
    """What is known of a tag.

    `image` is the ID of the image that is known to be the registry's, None if none is.  `digest` is what the registry
    had for the tag when it was asked last; None if it was not asked, or if Docker has pulled since.  `asked` is the
    time, in seconds since the epoch.
    """

    image: Digest | None
    digest: Digest | None
    asked: float

    def is_of(self, image: EngineImage) -> bool:
        """Return whether Docker's image is known to be the registry's."""
        return self.image == image.id

    def is_newer_than(self, image: EngineImage, reference: Reference) -> bool:
        """Return whether the registry has another image for the tag than Docker, whose `image` came from there."""
        return self.is_of(image) and self.digest not in (None, *image.digests_in(reference.repository))

    def is_older_than(self, seconds: float, now: float) -> bool:
        """Return whether the answer is older.  One in the future is: the machine's time may have been set back."""
        return not self.asked <= now < self.asked + seconds


class TagRecords:
    """The records, by reference.

    A record that cannot be written is kept in memory, so that the registry is not asked again for each request.
    """

    def __init__(self, database: Database | DatabaseConnection, workers: Workers, limit: int = MOST_TAGS) -> None:
        """`database` must have `TAG_TABLES`."""
        self._database = database
        self._workers = workers
        self._limit = limit
        self._unwritten: LRUCache[Reference, TagRecord] = LRUCache(limit)

    def find(self, reference: Reference) -> TagRecord | None:
        """Return the record of a tag, or None."""
        if reference in self._unwritten:
            return self._unwritten[reference]
        try:
            row = self._database.row(_FIND, (str(reference),))
        except StoreError as error:
            log.debug("the record of {reference} cannot be read: {error}", reference=reference, error=error)
            return None
        if row is None:
            return None
        image, digest, asked = row
        return TagRecord(
            None if image is None else Digest.parse(image), None if digest is None else Digest.parse(digest), asked
        )

    async def put(self, reference: Reference, record: TagRecord) -> None:
        """Replace the record of a tag.  It is found as soon as this has returned; cancelling does not undo it."""
        texts = [None if digest is None else str(digest) for digest in (record.image, record.digest)]
        statements = ((_RECORD, (str(reference), *texts, record.asked)), (_DROP_OLDEST, (self._limit,)))
        try:
            await self._workers.run(self._database.transact, statements)
        except StoreError as error:
            log.debug("what {reference} is was not recorded: {error}", reference=reference, error=error)
            self._unwritten[reference] = record
        else:
            self._unwritten.pop(reference, None)

    async def pulled(self, reference: Reference, image: EngineImage) -> None:
        """Record that Docker has just pulled the tag for k3dreg, and that it was `image`."""
        await self.put(reference, TagRecord(image.id, None, self._workers.clock.seconds()))
