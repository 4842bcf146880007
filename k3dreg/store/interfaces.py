"""Interfaces of k3dreg's own content on disk: blobs, uploads, and what was pushed."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from attrs import field, frozen

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import StoreError
from k3dreg.oci.listing import Names
from k3dreg.oci.reference import Repository, Tag
from k3dreg.streaming.content import IBlob, IFileHandle


class IBlobWriter(Protocol):
    """One blob on its way into a store: stage, verify, rename.

    `write`, `commit` and `abort` do I/O and hash: call them in a worker thread, one at a time.
    """

    @property
    def written(self) -> int:
        """Bytes written so far."""

    def write(self, data: bytes | memoryview) -> None:
        """Append.  Raises `StoreFull` or `StoreError`."""

    def open_reader(self) -> IFileHandle:
        """A handle on what has been written and will be.  It stays readable after `commit`, `abort` and eviction.

        It is the caller's to close.  Raises `StoreError`.
        """

    def commit(self, digest: Digest | None = None, size: int | None = None) -> Digest:
        """Verify, make visible, and return the digest.  Content that was there already is kept as it is.

        Raises `DigestMismatch` if the bytes are not `size` many or do not hash to `digest`; nothing is visible then.
        """

    def abort(self) -> None:
        """Forget it.  Safe at any time, any number of times, after `commit` too."""


class IPassingWriter(IBlobWriter, Protocol):
    """A writer that passes a blob on to its readers when the store cannot keep it.

    None of its methods raises `StoreError` because the disk cannot be written.  The bytes from there on are in memory
    until `discard_before`, so the caller waits for readers before it writes much more (see `store.arrivals`).
    """

    @property
    def unkept(self) -> StoreError | None:
        """Why the blob is not kept; None as long as it is.  `commit` verifies all the same."""

    def discard_before(self, offset: int) -> None:
        """Drop the bytes before `offset` that are in memory: no reader needs them any more."""


class IBlobStore(Protocol):
    """Content by digest, on this machine's disk."""

    def get(self, digest: Digest) -> IBlob | None:
        """The blob, or None.  Counts as a use.  No I/O."""

    def has(self, digest: Digest) -> bool:
        """Whether it is here.  Does not count as a use.  No I/O."""

    def size_of(self, digest: Digest) -> int:
        """Bytes; 0 for a blob that is not here.  Not a use.  No I/O."""

    def writer(self, algorithm: str = "sha256", *, durable: bool = False) -> IBlobWriter:
        """A writer for one more blob.  Call it in a worker thread.

        `durable`: once it is committed, it survives a power failure.
        """

    def passing_writer(self, algorithm: str = "sha256") -> IPassingWriter:
        """A writer for one more blob, which goes on when the disk cannot be written.  Call it in a worker thread."""

    async def put(self, data: bytes) -> Digest:
        """Keep a small document; returns its sha256 digest.  Raises `StoreFull` or `StoreError`."""

    def hold(self, digests: Iterable[Digest]) -> Callable[[], None]:
        """Keep these from being evicted, here already or not, until the returned function is called."""

    async def make_durable(self, digest: Digest) -> bool:
        """Let a blob survive a power failure from now on; False when it is not here, or not whole."""

    async def discard(self, digest: Digest) -> None:
        """Remove a blob, e.g. one found to be damaged.  A blob that is not here is no error."""

    async def drop(self, digest: Digest) -> bool:
        """Remove a blob that nobody wants: not if it is held, or pinned.  Returns whether it is gone."""


class IStaging(Protocol):
    """Where uploads wait until they are blobs."""

    def begin(self, algorithm: str = "sha256") -> IBlobWriter:
        """A durable writer for one upload; no I/O.  Its `commit` takes a digest of any algorithm.

        `algorithm` is the likely one: content of another is hashed twice.
        """


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


class IPushed(Protocol):
    """What was pushed: repositories, and in each of them blobs, manifests and tags.  The bytes are in the blob store.

    The answers need no I/O, but for `descriptors`.  The coroutines that change something return when the change is on
    disk for good, and raise `StoreFull` or `StoreError` when it is not; cancelling one gives up the answer, not the
    change.  Changes take effect in the order in which they were asked for.
    """

    def repositories(self) -> Sequence[Repository]:
        """Those that hold anything, in lexical order of their names."""

    def has(self, repository: Repository) -> bool:
        """Whether anything was pushed there."""

    def own_names(self) -> Names:
        """Return the paths of the repositories of this registry's own.  The caller does not change them."""

    def tags(self, repository: Repository) -> Names:
        """Return the names of the tags.  The caller does not change them."""

    def tagged(self, repository: Repository, tag: Tag) -> PushedManifest | None:
        """The manifest that a tag names."""

    def manifest(self, repository: Repository, digest: Digest) -> PushedManifest | None:
        """A manifest by its digest."""

    def manifests(self, repository: Repository) -> Sequence[PushedManifest]:
        """All of them."""

    def tagged_digests(self, repository: Repository) -> Collection[Digest]:
        """What its tags name."""

    def blobs(self, repository: Repository) -> Mapping[Digest, float]:
        """Its blobs, each with the time (seconds since the epoch) since which somebody may rely on it."""

    def has_blob(self, repository: Repository, digest: Digest) -> bool:
        """Whether the blob was pushed, or mounted, there.  Counts as a use: see `blobs`."""

    def referrers(
        self, repository: Repository, subject: Digest, last: str | None = None, limit: int = sys.maxsize
    ) -> Sequence[PushedManifest]:
        """Return the manifests whose subject it is, ordered by digest: at most `limit` behind the digest `last`."""

    async def descriptors(
        self, repository: Repository, digests: Sequence[Digest], limit: int
    ) -> Mapping[Digest, bytes]:
        """The descriptors of manifests as JSON, with their annotations, in the order of `digests`.

        They are read from the disk, as many as have `limit` bytes together, and one at least.  What is not there is
        left out.  Raises `StoreError`.
        """

    def keeps(self, digest: Digest) -> bool:
        """Whether any repository holds it, as a blob or as a manifest.  Such content is never evicted."""

    def was_pushed(self, digest: Digest) -> bool:
        """Whether any repository holds it, or has held it since the start, and `forget` was not called."""

    def let_go(self) -> Collection[Digest]:
        """What was held since the start and is not any more: its file may still be here."""

    def forget(self, digest: Digest) -> None:
        """What was let go is not here any more, or it is the engine's."""

    async def add_blob(self, repository: Repository, digest: Digest, size: int) -> None:
        """The blob of `size` bytes, which is in the blob store durably, is now in this repository too."""

    async def add_manifest(self, repository: Repository, manifest: PushedManifest, tags: Iterable[Tag]) -> None:
        """The manifest, which is in the blob store durably, is now in this repository, and these tags name it."""

    async def remove_tag(self, repository: Repository, tag: Tag) -> bool:
        """Returns whether there was one."""

    async def remove_manifest(self, repository: Repository, digest: Digest) -> bool:
        """With all tags that name it.  Returns whether there was one."""

    async def remove_blobs(
        self, repository: Repository, digests: Iterable[Digest], *, unused_since: float = math.inf
    ) -> int:
        """Those that nobody has relied on since then (see `blobs`); returns how many that were.

        The answers tell of it at once, before it is on disk, and take it back when it cannot be written.
        """
