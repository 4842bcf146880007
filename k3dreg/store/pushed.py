"""What was pushed: repositories with their blobs, manifests and tags, in the database."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TypeVar

from cachetools import LRUCache
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from k3dreg.config.retention import RetainRule
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import StoreError
from k3dreg.oci.reference import Reference, Repository, Tag
from k3dreg.reporting.logger import make_logger
from k3dreg.store import pushed_queries, pushed_tables
from k3dreg.store.database import Database, DatabaseConnection
from k3dreg.store.group_commit import GroupCommit
from k3dreg.store.interfaces import (
    ExpiredTag,
    NodeImages,
    PushedImage,
    PushedManifest,
    PushedUsage,
    ReferrersPage,
    Retired,
)
from k3dreg.store.pushed_queries import PushedReader
from k3dreg.store.retention import expired_tags, pushed_usage
from k3dreg.streaming.workers import Workers

T = TypeVar("T")

log = make_logger()

# Blobs or manifests that a collection removes in one transaction, which must fit into the reserve of a full disk.
_REMOVED_AT_ONCE = 50
# Tags that are removed in one transaction with their manifests, of which an index for many platforms has some ten.
_TAGS_AT_ONCE = 5
# Manifests of which the time of the recorded pull is kept in memory.
_PULLS = 10_000


class PushedContent(PushedReader):
    """What was pushed, in a database with `PUSHED_TABLES`.  Implements `IPushed`.  Close it by `close`."""

    def __init__(self, database: Database | DatabaseConnection, workers: Workers, clock: IReactorTime) -> None:
        """`clock.seconds()` must be seconds since the epoch."""
        super().__init__(database)
        self._database = database
        self._workers = workers
        self._commits = GroupCommit(database, workers)
        self._clock = clock
        # The last uses of blobs and manifests that may protect them from `remove_idle_blobs` and `retire`.
        self._used: dict[Digest, float] = {}
        # When pulls were recorded last.
        self._recorded: LRUCache[tuple[Repository, Digest], float] = LRUCache(_PULLS)
        # Blobs and manifests that are being removed.
        self._leaving: set[tuple[Repository, Digest]] = set()
        # Content that was removed from a repository since the start.  Another repository may still have it.
        self._removed: set[Digest] = set()

    def find(self, reference: Reference) -> Descriptor | None:
        """Return what `PushedReader.find` does, and record the use: in memory, and sometimes on the disk, as a pull.

        This does not wait for the disk.
        """
        found = super().find(reference)
        if found is None or (reference.repository, found.digest) in self._leaving:
            return None
        self._used[found.digest] = self._clock.seconds()
        self._record_pull(reference.repository, found.digest)
        return found

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
        statements += [
            pushed_tables.add_tag(repository, tag.name, manifest.digest, self._clock.seconds()) for tag in tags
        ]
        await self._commits.write(statements)

    async def remove_tag(self, repository: Repository, tag: Tag) -> bool:
        return await self._commits.write([pushed_tables.remove_tag(repository, tag.name)], removing=True) == [1]

    async def remove_tag_and_manifests(self, repository: Repository, tag: Tag) -> bool:
        return (await self._remove_tags(repository, [tag.name]))[0] == [1]

    async def retire(self, rules: Sequence[RetainRule], unused_since: float) -> Retired:
        now = self._clock.seconds()
        expired = await self._workers.run(expired_tags, self._database, rules, now)
        tags: list[ExpiredTag] = []
        manifests = 0
        for repository, found in groupby(expired, key=lambda tag: tag.repository):
            idle = [tag for tag in found if not self._were_used(tag.manifests, unused_since)]
            for some in _batches(idle, _TAGS_AT_ONCE):
                names = [tag.name for tag in some]
                counts, removed = await self._remove_tags(repository, names, unused_since, pushed_until=now)
                tags += [tag for tag, count in zip(some, counts, strict=False) if count]
                manifests += removed
        return Retired(tuple(tags), manifests)

    async def usage(self, rules: Sequence[RetainRule]) -> PushedUsage:
        return await self._workers.run(pushed_usage, self._database, rules, self._clock.seconds())

    async def record_node_images(self, nodes: NodeImages) -> None:
        await self._commits.write(pushed_tables.record_node_images(nodes), removing=True)

    async def remove_manifest(self, repository: Repository, digest: Digest) -> bool:
        return await self._remove_manifests([(repository, digest)]) == 1

    async def remove_untagged_manifests(self) -> int:
        found = await self._workers.run(pushed_queries.unreached_manifests, self._database)
        return sum([await self._remove_manifests(some) for some in _batches(found, _REMOVED_AT_ONCE)])

    async def remove_blob(self, repository: Repository, digest: Digest) -> bool:
        return await self._remove_blobs([(repository, digest)], math.inf) == 1

    async def remove_idle_blobs(self, unused_since: float) -> int:
        found = await self._workers.run(pushed_queries.unreferenced_blobs, self._database, unused_since)
        removed = sum([await self._remove_blobs(some, unused_since) for some in _batches(found, _REMOVED_AT_ONCE)])
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
        idle = {each for each in blobs if not self._were_used([each[1]], unused_since)}
        self._leaving |= idle
        self._remember_removal(digest for _, digest in idle)
        statements = [pushed_tables.remove_blob(*each, unused_since) for each in idle]
        return sum(await self._commits.write(statements, removing=True, ended=partial(self._stay, idle)))

    async def _remove_tags(
        self,
        repository: Repository,
        names: Sequence[str],
        unused_since: float = math.inf,
        pushed_until: float = math.inf,
    ) -> tuple[Sequence[int], int]:
        """Remove tags, and the manifests to which nothing else leads.

        Nothing that was pushed after `pushed_until` is removed, and nothing at all if one of the manifests was used
        after `unused_since`.  Returns for each tag whether it was removed, and the number of manifests.
        """
        manifests = await self._workers.run(pushed_queries.only_reached_by, self._database, repository, names)
        if self._were_used(manifests, unused_since):
            return [0] * len(names), 0
        leaving = {(repository, digest) for digest in manifests}
        self._leaving |= leaving
        self._remember_removal(manifests)
        statements = [pushed_tables.remove_tag(repository, name, pushed_until) for name in names]
        statements += [pushed_tables.remove_untagged(repository, digest, pushed_until) for digest in manifests]
        counts = await self._commits.write(statements, removing=True, ended=partial(self._stay, leaving))
        return counts[: len(names)], sum(counts[len(names) :])

    def _were_used(self, digests: Iterable[Digest], since: float) -> bool:
        """Return whether one of them was used after `since`."""
        return any(self._used.get(digest, -math.inf) > since for digest in digests)

    def _record_pull(self, repository: Repository, digest: Digest) -> None:
        """Record the time of a pull on the disk, soon, if what is recorded is too old."""
        now, key = self._clock.seconds(), (repository, digest)
        if 0 <= now - self._recorded.get(key, -math.inf) < pushed_tables.PULL_RECORDED_EVERY:
            return
        self._recorded[key] = now

        def not_recorded(failure: Failure) -> None:
            self._recorded.pop(key, None)
            if failure.check(StoreError):
                log.debug("a pull was not recorded: {error}", error=failure.value)
            else:
                log.failure("a pull was not recorded", failure=failure)

        writing = Deferred.fromCoroutine(self._commits.write([pushed_tables.record_pull(repository, digest, now)]))
        writing.addErrback(not_recorded)

    def _stay(self, contents: Collection[tuple[Repository, Digest]]) -> None:
        self._leaving.difference_update(contents)

    def _remember_removal(self, digests: Iterable[Digest]) -> None:
        """Remember content that is about to be removed, so that its file is found even if a client asks meanwhile."""
        self._removed.update(filter(self.keeps, digests))


def _batches(found: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (found[start : start + size] for start in range(0, len(found), size))
