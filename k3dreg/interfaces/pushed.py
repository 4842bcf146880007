"""What was pushed."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence

from attrs import field, frozen
from zope.interface import Interface

from k3dreg.model.descriptor import Descriptor
from k3dreg.model.digest import Digest
from k3dreg.model.reference import Repository, Tag
from k3dreg.protocol.listing import Names


@frozen
class PushedManifest:
    """A manifest that was pushed into a repository.

    `descriptor` is what a list of referrers says of it, so it has its `artifact_type`, and annotations when it is
    added: `IPushed` answers without those, but for `descriptors`.  `parts` are the digests of everything it refers to
    as a part of itself.  `since` is when it was pushed, in seconds since the epoch, and set by `IPushed.add_manifest`;
    0 where it is not known.
    """

    descriptor: Descriptor
    parts: frozenset[Digest] = frozenset()
    subject: Digest | None = None
    since: float = field(default=0.0, eq=False)

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest


class IPushed(Interface):
    """What was pushed: repositories, and in each of them blobs, manifests and tags.  The bytes are in the blob store.

    The answers need no I/O, but for `descriptors`.  The coroutines that change something return when the change is on
    disk for good, and raise `StoreFull` or `StoreError` when it is not; cancelling one gives up the answer, not the
    change.  Changes take effect in the order in which they were asked for.
    """

    def repositories() -> Sequence[Repository]:
        """Those that hold anything, in lexical order of their names."""

    def has(repository: Repository) -> bool:
        """Whether anything was pushed there."""

    def own_names() -> Names:
        """Return the paths of the repositories of this registry's own.  The caller does not change them."""

    def tags(repository: Repository) -> Names:
        """Return the names of the tags.  The caller does not change them."""

    def tagged(repository: Repository, tag: Tag) -> PushedManifest | None:
        """The manifest that a tag names."""

    def manifest(repository: Repository, digest: Digest) -> PushedManifest | None:
        """A manifest by its digest."""

    def manifests(repository: Repository) -> Sequence[PushedManifest]:
        """All of them."""

    def tagged_digests(repository: Repository) -> Collection[Digest]:
        """What its tags name."""

    def blobs(repository: Repository) -> Mapping[Digest, float]:
        """Its blobs, each with the time (seconds since the epoch) since which somebody may rely on it."""

    def has_blob(repository: Repository, digest: Digest) -> bool:
        """Whether the blob was pushed, or mounted, there.  Counts as a use: see `blobs`."""

    def referrers(
        repository: Repository, subject: Digest, last: str | None = None, limit: int = sys.maxsize
    ) -> Sequence[PushedManifest]:
        """Return the manifests whose subject it is, ordered by digest: at most `limit` behind the digest `last`."""

    async def descriptors(repository: Repository, digests: Sequence[Digest], limit: int) -> Mapping[Digest, bytes]:
        """The descriptors of manifests as JSON, with their annotations, in the order of `digests`.

        They are read from the disk, as many as have `limit` bytes together, and one at least.  What is not there is
        left out.  Raises `StoreError`.
        """

    def keeps(digest: Digest) -> bool:
        """Whether any repository holds it, as a blob or as a manifest.  Such content is never evicted."""

    def was_pushed(digest: Digest) -> bool:
        """Whether any repository holds it, or has held it since the start, and `forget` was not called."""

    def let_go() -> Collection[Digest]:
        """What was held since the start and is not any more: its file may still be here."""

    def forget(digest: Digest) -> None:
        """What was let go is not here any more, or it is the engine's."""

    async def add_blob(repository: Repository, digest: Digest) -> None:
        """The blob, which is in the blob store durably, is now in this repository too."""

    async def add_manifest(repository: Repository, manifest: PushedManifest, tags: Iterable[Tag]) -> None:
        """The manifest, which is in the blob store durably, is now in this repository, and these tags name it."""

    async def remove_tag(repository: Repository, tag: Tag) -> bool:
        """Returns whether there was one."""

    async def remove_manifest(repository: Repository, digest: Digest) -> bool:
        """With all tags that name it.  Returns whether there was one."""

    async def remove_blobs(repository: Repository, digests: Iterable[Digest], *, unused_since: float = math.inf) -> int:
        """Those that nobody has relied on since then (see `blobs`); returns how many that were.

        The answers tell of it at once, before it is on disk, and take it back when it cannot be written.
        """
