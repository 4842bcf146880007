"""What was pushed: repositories with their blobs, manifests and tags, in the database."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

from twisted.internet.interfaces import IReactorTime

from k3dreg.oci.digest import Digest
from k3dreg.oci.reference import Repository, Tag
from k3dreg.store import pushed_queries, pushed_tables
from k3dreg.store.database import Database
from k3dreg.store.group_commit import GroupCommit
from k3dreg.store.interfaces import PushedImage, PushedManifest, ReferrersPage
from k3dreg.store.pushed_queries import PushedReader
from k3dreg.streaming.workers import Workers

# Blobs or manifests that a collection removes in one transaction, which must fit into the reserve of a full disk.
_REMOVED_AT_ONCE = 50


class PushedContent(PushedReader):
    """What was pushed, in a database with `PUSHED_TABLES`.  Implements `IPushed`.  Close it by `close`."""

    def __init__(self, database: Database, workers: Workers, clock: IReactorTime) -> None:
        """`clock.seconds()` must be seconds since the epoch."""
        super().__init__(database)
        self._database = database
        self._workers = workers
        self._commits = GroupCommit(database, workers)
        self._clock = clock
        # The last uses of blobs that may protect them from `remove_idle_blobs`.
        self._used: dict[Digest, float] = {}
        # Blobs that are being removed.
        self._leaving: set[tuple[Repository, Digest]] = set()
        # Content that was removed from a repository since the start.  Another repository may still have it.
        self._removed: set[Digest] = set()

    def has_blob(self, repository: Repository, digest: Digest) -> bool:
        """Return whether the repository has the blob, and record the use in memory only.

        A restart forgets the use: a client that was told of the blob before may find that it has to push it.
        """
        if (repository, digest) in self._leaving or not super().has_blob(repository, digest):
            return False
        self._used[digest] = self._clock.seconds()
        return True

    def was_pushed(self, digest: Digest) -> bool:
        return digest in self._removed or self.keeps(digest)

    def kept(self) -> Mapping[Digest, int]:
        return pushed_queries.all_sizes(self._database)

    async def own_names(self, last: str | None, limit: int) -> Sequence[str]:
        return await self._workers.run(pushed_queries.own_paths, self._database, last, limit)

    async def tags(self, repository: Repository, last: str | None, limit: int) -> Sequence[str]:
        return await self._workers.run(pushed_queries.tags, self._database, repository, last, limit)

    async def referrers(
        self, repository: Repository, subject: Digest, artifact_type: str | None, last: str | None, room: int
    ) -> ReferrersPage:
        return await self._workers.run(
            pushed_queries.referrers, self._database, repository, subject, artifact_type, last, room
        )

    async def images(self, limit: int) -> tuple[Sequence[PushedImage], int]:
        def read() -> tuple[Sequence[PushedImage], int]:
            return pushed_queries.tagged_images(self._database, limit), pushed_queries.count_tags(self._database)

        return await self._workers.run(read)

    async def let_go(self) -> Collection[Digest]:
        def read(removed: Collection[Digest]) -> list[Digest]:
            return [digest for digest in removed if not self.keeps(digest)]

        return await self._workers.run(read, tuple(self._removed))

    def forget(self, digest: Digest) -> None:
        self._removed.discard(digest)

    # -- changes --------------------------------------------------------------------------------

    async def add_blob(self, repository: Repository, digest: Digest, size: int) -> None:
        await self._commits.write([pushed_tables.add_blob(repository, digest, size, self._clock.seconds())])

    async def add_manifest(self, repository: Repository, manifest: PushedManifest, tags: Iterable[Tag]) -> None:
        statements = [pushed_tables.add_manifest(repository, manifest, self._clock.seconds())]
        statements += [pushed_tables.add_tag(repository, tag.name, manifest.digest) for tag in tags]
        await self._commits.write(statements)

    async def remove_tag(self, repository: Repository, tag: Tag) -> bool:
        return await self._commits.write([pushed_tables.remove_tag(repository, tag.name)], removing=True) == [1]

    async def remove_manifest(self, repository: Repository, digest: Digest) -> bool:
        return await self._remove_manifests([(repository, digest)]) == 1

    async def remove_untagged_manifests(self) -> int:
        found = await self._workers.run(pushed_queries.unreached_manifests, self._database)
        return sum([await self._remove_manifests(some) for some in _batches(found)])

    async def remove_blob(self, repository: Repository, digest: Digest) -> bool:
        return await self._remove_blobs([(repository, digest)], math.inf) == 1

    async def remove_idle_blobs(self, unused_since: float) -> int:
        found = await self._workers.run(pushed_queries.unreferenced_blobs, self._database, unused_since)
        removed = sum([await self._remove_blobs(some, unused_since) for some in _batches(found)])
        self._used = {digest: used for digest, used in self._used.items() if used > unused_since}
        return removed

    async def close(self) -> None:
        """Refuse new changes, and wait for those under way.  The database is closed afterwards, by the caller."""
        await self._commits.close()

    async def _remove_manifests(self, manifests: Sequence[tuple[Repository, Digest]]) -> int:
        """Remove manifests and the tags that name them; return how many there were."""
        self._remember_removal(digest for _, digest in manifests)
        statements = [each for found in manifests for each in pushed_tables.remove_manifest(*found)]
        return sum((await self._commits.write(statements, removing=True))[1::2])

    async def _remove_blobs(self, blobs: Sequence[tuple[Repository, Digest]], unused_since: float) -> int:
        """Remove blobs that were not used after `unused_since`; return how many were removed.

        No client is told to rely on a blob from the moment at which its last use is compared: see `_leaving`.
        """
        idle = {each for each in blobs if self._used.get(each[1], -math.inf) <= unused_since}
        self._leaving |= idle
        self._remember_removal(digest for _, digest in idle)
        statements = [pushed_tables.remove_blob(*each, unused_since) for each in idle]
        return sum(await self._commits.write(statements, removing=True, ended=partial(self._stay, idle)))

    def _stay(self, blobs: Collection[tuple[Repository, Digest]]) -> None:
        self._leaving.difference_update(blobs)

    def _remember_removal(self, digests: Iterable[Digest]) -> None:
        """Remember content that is about to be removed, so that its file is found even if a client asks meanwhile."""
        self._removed.update(filter(self.keeps, digests))


def _batches(
    found: Sequence[tuple[Repository, Digest]],
) -> Iterable[Sequence[tuple[Repository, Digest]]]:
    return (found[start : start + _REMOVED_AT_ONCE] for start in range(0, len(found), _REMOVED_AT_ONCE))
