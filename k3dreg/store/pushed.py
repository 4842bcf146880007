"""What was pushed: repositories with their blobs, manifests and tags.  Read from memory, and stored in a database."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

from attrs import define, evolve, field
from twisted.internet.interfaces import IReactorTime

from k3dreg.oci.digest import Digest
from k3dreg.oci.listing import Names
from k3dreg.oci.reference import Repository, Tag
from k3dreg.store import pushed_database
from k3dreg.store.database import Database
from k3dreg.store.interfaces import PushedManifest
from k3dreg.store.pushed_changes import Change, PushedChanges
from k3dreg.store.pushed_database import PushedRow, read_descriptors, read_pushed, without_annotations
from k3dreg.streaming.workers import Workers


@define
class _Contents:
    """The contents of one repository.  `blobs`: as `IPushed.blobs`."""

    blobs: dict[Digest, float] = field(factory=dict)
    manifests: dict[Digest, PushedManifest] = field(factory=dict)
    tags: dict[str, Digest] = field(factory=dict)
    tag_names: Names = field(factory=Names)
    # By subject, the digests of the manifests with that subject.
    referrers: dict[Digest, Names] = field(factory=dict)

    def tag(self, name: str, digest: Digest) -> None:
        """Let the tag `name` name `digest`."""
        self.tags[name] = digest
        self.tag_names.add(name)

    def untag(self, name: str) -> None:
        """Remove a tag, if it exists."""
        if self.tags.pop(name, None) is not None:
            self.tag_names.discard(name)


_NOTHING = _Contents()
_NO_NAMES = Names()


class PushedContent:
    """What was pushed, in memory and in a database.  Implements `IPushed`.

    Create it by `open_pushed` and close it by `close`.  Changes that are requested while others are being written are
    then written in one transaction.
    """

    def __init__(self, database: Database, rows: Iterable[PushedRow], workers: Workers, clock: IReactorTime) -> None:
        """`clock.seconds()` must be seconds since the epoch."""
        self._database = database
        self._workers = workers
        self._changes = PushedChanges(database, workers)
        self._clock = clock
        self._repositories: dict[Repository, _Contents] = {}
        self._own_names = Names()
        self._kept: Counter[Digest] = Counter()
        # Digests that no repository has any more, whose files may still exist.
        self._let_gone: set[Digest] = set()
        # The sizes in bytes that the database had on opening.  A file of another size is damaged.
        self.sizes_at_start: dict[Digest, int] = {}
        for row in rows:
            self._read(row)

    # -- answers --------------------------------------------------------------------------------

    def repositories(self) -> Sequence[Repository]:
        return sorted(self._repositories, key=str)

    def has(self, repository: Repository) -> bool:
        return repository in self._repositories

    def own_names(self) -> Names:
        return self._own_names

    def tags(self, repository: Repository) -> Names:
        return self._contents(repository).tag_names

    def tagged(self, repository: Repository, tag: Tag) -> PushedManifest | None:
        contents = self._contents(repository)
        digest = contents.tags.get(tag.name)
        return None if digest is None else contents.manifests.get(digest)

    def manifest(self, repository: Repository, digest: Digest) -> PushedManifest | None:
        return self._contents(repository).manifests.get(digest)

    def manifests(self, repository: Repository) -> Sequence[PushedManifest]:
        return list(self._contents(repository).manifests.values())

    def tagged_digests(self, repository: Repository) -> Collection[Digest]:
        return set(self._contents(repository).tags.values())

    def blobs(self, repository: Repository) -> Mapping[Digest, float]:
        return self._contents(repository).blobs

    def has_blob(self, repository: Repository, digest: Digest) -> bool:
        """Return whether the repository has the blob, and record the use in memory only.

        A restart forgets the use: a client that was told of the blob before may find that it has to push it.
        """
        blobs = self._contents(repository).blobs
        if digest not in blobs:
            return False
        blobs[digest] = self._clock.seconds()
        return True

    def referrers(
        self, repository: Repository, subject: Digest, last: str | None = None, limit: int = sys.maxsize
    ) -> Sequence[PushedManifest]:
        contents = self._contents(repository)
        found = contents.referrers.get(subject, _NO_NAMES).after(last, limit)
        return [contents.manifests[Digest.parse(digest)] for digest in found]

    async def descriptors(
        self, repository: Repository, digests: Sequence[Digest], limit: int
    ) -> Mapping[Digest, bytes]:
        return await self._workers.run(read_descriptors, self._database, repository, digests, limit) if digests else {}

    def keeps(self, digest: Digest) -> bool:
        return digest in self._kept

    def was_pushed(self, digest: Digest) -> bool:
        return digest in self._kept or digest in self._let_gone

    def let_go(self) -> Collection[Digest]:
        return list(self._let_gone)

    def forget(self, digest: Digest) -> None:
        self._let_gone.discard(digest)

    # -- changes --------------------------------------------------------------------------------

    async def add_blob(self, repository: Repository, digest: Digest, size: int) -> None:
        now = self._clock.seconds()
        statements = [pushed_database.add_blob(repository, digest, size, now)]
        await self._changes.make(Change(statements, lambda: self._put_blob(repository, digest, now)))

    async def add_manifest(self, repository: Repository, manifest: PushedManifest, tags: Iterable[Tag]) -> None:
        manifest = evolve(manifest, since=self._clock.seconds())
        names = [tag.name for tag in tags]
        statements = [pushed_database.add_manifest(repository, manifest)]
        statements += [pushed_database.add_tag(repository, name, manifest.digest) for name in names]

        def apply() -> None:
            self._put_manifest(repository, manifest)
            for name in names:
                self._repositories[repository].tag(name, manifest.digest)

        await self._changes.make(Change(statements, apply))

    async def remove_tag(self, repository: Repository, tag: Tag) -> bool:
        if tag.name not in self._contents(repository).tags:
            return False
        statements = [pushed_database.remove_tag(repository, tag.name)]
        await self._changes.make(Change(statements, lambda: self._drop_tag(repository, tag.name), removing=True))
        return True

    async def remove_manifest(self, repository: Repository, digest: Digest) -> bool:
        if digest not in self._contents(repository).manifests:
            return False
        statements = pushed_database.remove_manifest(repository, digest)
        await self._changes.make(Change(statements, lambda: self._drop_manifest(repository, digest), removing=True))
        return True

    async def remove_blobs(
        self, repository: Repository, digests: Iterable[Digest], *, unused_since: float = math.inf
    ) -> int:
        """Remove blobs that were not used after `unused_since`; return how many were removed.

        They leave the memory before the database, so that no client is told to rely on a blob that is being removed.
        """
        known = self._contents(repository).blobs
        found = {digest: known[digest] for digest in digests if digest in known and known[digest] <= unused_since}
        if found:
            self._drop_blobs(repository, found)
            statements = [pushed_database.remove_blob(repository, digest) for digest in found]
            undo = partial(self._put_back, repository, found)
            await self._changes.make(Change(statements, undo=undo, removing=True))
        return len(found)

    async def close(self) -> None:
        """Refuse new changes, and wait for those under way.  The database is closed afterwards, by the caller."""
        await self._changes.close()

    # -- memory ---------------------------------------------------------------------------------

    def _contents(self, repository: Repository) -> _Contents:
        """Return the contents of a repository for reading.  The caller must not add to them."""
        return self._repositories.get(repository, _NOTHING)

    def _made(self, repository: Repository) -> _Contents:
        """Return the contents of a repository for changing; create them if it has none."""
        contents = self._repositories.get(repository)
        if contents is None:
            contents = self._repositories[repository] = _Contents()
            if repository.registry is None:
                self._own_names.add(repository.path)
        return contents

    def _read(self, row: PushedRow) -> None:
        if row.blob is not None:
            self._put_blob(row.repository, row.blob, row.since)
            if row.size:
                self.sizes_at_start[row.blob] = row.size
        if row.manifest is not None:
            self._put_manifest(row.repository, row.manifest)
            self.sizes_at_start[row.manifest.digest] = row.manifest.descriptor.size
        if row.tag is not None:
            name, digest = row.tag
            self._made(row.repository).tag(name, digest)

    def _put_blob(self, repository: Repository, digest: Digest, since: float) -> None:
        blobs = self._made(repository).blobs
        if digest not in blobs:
            self._keep(digest)
        blobs[digest] = since

    def _put_back(self, repository: Repository, blobs: Mapping[Digest, float]) -> None:
        """Undo `_drop_blobs`, except for blobs that were pushed again meanwhile."""
        for digest, since in blobs.items():
            if digest not in self._contents(repository).blobs:
                self._put_blob(repository, digest, since)

    def _put_manifest(self, repository: Repository, manifest: PushedManifest) -> None:
        contents = self._made(repository)
        if manifest.digest not in contents.manifests:
            self._keep(manifest.digest)
        contents.manifests[manifest.digest] = evolve(manifest, descriptor=without_annotations(manifest.descriptor))
        if manifest.subject is not None:
            contents.referrers.setdefault(manifest.subject, Names()).add(str(manifest.digest))

    def _drop_tag(self, repository: Repository, name: str) -> None:
        self._contents(repository).untag(name)
        self._tidy(repository)

    def _drop_manifest(self, repository: Repository, digest: Digest) -> None:
        contents = self._contents(repository)
        manifest = contents.manifests.pop(digest, None)
        if manifest is None:
            return
        self._let_go(digest)
        for name in [name for name, named in contents.tags.items() if named == digest]:
            contents.untag(name)
        if manifest.subject is not None:
            referrers = contents.referrers[manifest.subject]
            referrers.discard(str(digest))
            if not referrers:
                del contents.referrers[manifest.subject]
        self._tidy(repository)

    def _drop_blobs(self, repository: Repository, digests: Iterable[Digest]) -> None:
        blobs = self._contents(repository).blobs
        for digest in digests:
            if blobs.pop(digest, None) is not None:
                self._let_go(digest)
        self._tidy(repository)

    def _keep(self, digest: Digest) -> None:
        self._kept[digest] += 1
        self._let_gone.discard(digest)

    def _let_go(self, digest: Digest) -> None:
        self._kept[digest] -= 1
        if not self._kept[digest]:
            del self._kept[digest]
            self._let_gone.add(digest)

    def _tidy(self, repository: Repository) -> None:
        contents = self._contents(repository)
        if not (contents.blobs or contents.manifests or contents.tags):
            self._repositories.pop(repository, None)
            if repository.registry is None:
                self._own_names.discard(repository.path)


async def open_pushed(database: Database, workers: Workers, clock: IReactorTime) -> PushedContent:
    """Read what was pushed from the database, which has `PUSHED_TABLES`.

    Call this before opening the blob store, which must know what it must not evict.  Raises `StoreError`.
    """
    return PushedContent(database, await workers.run(read_pushed, database), workers, clock)
