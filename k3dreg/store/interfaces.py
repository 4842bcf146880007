"""Interfaces of k3dreg's own content on disk: blobs, uploads, and the list of what was pushed."""

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
    """A blob that is being written to a store: staged, verified, then renamed.

    The caller ends it by `commit` or `abort`.  `write`, `commit` and `abort` hash and do I/O: call them in a worker
    thread, one at a time.
    """

    @property
    def written(self) -> int:
        """Return how many bytes have been written."""

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`.  Raises `StoreFull` or `StoreError`."""

    def open_reader(self) -> IFileHandle:
        """Return a handle on the bytes written so far and later, readable after `commit`, `abort` and eviction.

        The caller closes it.  Raises `StoreError`.
        """

    def commit(self, digest: Digest | None = None, size: int | None = None) -> Digest:
        """Verify the blob, make it visible, and return its digest.

        Raises `DigestMismatch` if the blob does not have `size` bytes or does not hash to `digest`, `StoreFull` or
        `StoreError`; the blob is then not visible.
        """

    def abort(self) -> None:
        """Remove the staged bytes.  Safe at any time, any number of times, after `commit` too."""


class IPassingWriter(IBlobWriter, Protocol):
    """A writer that keeps the bytes in memory for the blob's readers when the disk cannot be written.

    No method raises `StoreError` for that reason.  Bytes in memory stay there until `discard_before`, so the caller
    must wait for the readers before it writes much more (see `store.arrivals`).
    """

    @property
    def unkept(self) -> StoreError | None:
        """Return the error that prevents keeping the blob, or None.  `commit` verifies the blob in either case."""

    def discard_before(self, offset: int) -> None:
        """Drop the bytes before `offset` that are in memory, because no reader needs them any more."""


class IHeldBlobs(Protocol):
    """Content by digest, to be read."""

    def get(self, digest: Digest) -> IBlob | None:
        """Return the blob, or None.  Counts as a use.  No I/O."""

    def has(self, digest: Digest) -> bool:
        """Return whether the store has the blob.  Does not count as a use.  No I/O."""

    def hold(self, digests: Iterable[Digest]) -> Callable[[], None]:
        """Do not evict these blobs, present or not, until the returned function is called."""


class IBlobStore(IHeldBlobs, Protocol):
    """Content by digest, on this machine's disk."""

    def size_of(self, digest: Digest) -> int:
        """Return the blob's size in bytes; 0 for an unknown digest.  Does not count as a use.  No I/O."""

    def writer(self, algorithm: str = "sha256", *, durable: bool = False) -> IBlobWriter:
        """Return a writer for a new blob.  Call this in a worker thread.

        `durable`: once it is committed, the blob survives a power failure.  Raises `StoreError`.
        """

    def passing_writer(self, algorithm: str = "sha256") -> IPassingWriter:
        """Return a writer for a new blob that goes on in memory when the disk cannot be written.

        Call this in a worker thread.
        """

    async def put(self, data: bytes) -> Digest:
        """Store a small document and return its sha256 digest.  Raises `StoreFull` or `StoreError`."""

    async def make_durable(self, digest: Digest) -> bool:
        """Make a blob survive a power failure; return False if it is missing or damaged.  Raises `StoreError`."""

    async def discard(self, digest: Digest) -> None:
        """Remove a blob, held or not, such as a damaged one.  An unknown digest is no error.  Raises `StoreError`."""

    async def drop(self, digest: Digest) -> bool:
        """Remove a blob unless it is held or pinned; return whether it was removed.  Raises `StoreError`."""


class IStaging(Protocol):
    """Creates the writers of upload sessions."""

    def begin(self, algorithm: str = "sha256") -> IBlobWriter:
        """Return a durable writer for one upload.  No I/O.  Its `commit` accepts a digest of any algorithm.

        `algorithm` is the expected one; the bytes are read and hashed again for a digest of another one.
        """


@frozen
class PushedManifest:
    """A manifest that was pushed into a repository.

    `descriptor` is the manifest's entry in a list of referrers, so it has the `artifact_type`.  It has annotations only
    when it is passed to `IPushed.add_manifest`: the methods of `IPushed` return it without them, except `descriptors`.
    `parts`: the digests of the manifest's config, layers or child manifests.  `since`: the time of the push in seconds
    since the epoch, set by `IPushed.add_manifest`; 0 if unknown.
    """

    descriptor: Descriptor
    parts: frozenset[Digest] = frozenset()
    subject: Digest | None = None
    since: float = field(default=0.0, eq=False)

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest


class IPushed(Protocol):
    """What was pushed: repositories, each with its blobs, manifests and tags.  The bytes are in the blob store.

    The methods that read need no I/O, except `descriptors`.  The coroutines that change something return when the
    change would survive a power failure.  They raise `StoreFull` or `StoreError` if it cannot be written.  Cancelling
    one does not cancel the change.  Changes take effect in the order of the calls.
    """

    def repositories(self) -> Sequence[Repository]:
        """Return the repositories that are not empty, in lexical order of their names."""

    def has(self, repository: Repository) -> bool:
        """Return whether the repository has a blob, manifest or tag."""

    def own_names(self) -> Names:
        """Return the paths of the repositories of this registry itself.  The caller must not change them."""

    def tags(self, repository: Repository) -> Names:
        """Return the names of the repository's tags.  The caller must not change them."""

    def tagged(self, repository: Repository, tag: Tag) -> PushedManifest | None:
        """Return the manifest that a tag names, or None."""

    def manifest(self, repository: Repository, digest: Digest) -> PushedManifest | None:
        """Return the repository's manifest of this digest, or None."""

    def manifests(self, repository: Repository) -> Sequence[PushedManifest]:
        """Return all manifests of the repository."""

    def tagged_digests(self, repository: Repository) -> Collection[Digest]:
        """Return the digests of the manifests that the repository's tags name."""

    def blobs(self, repository: Repository) -> Mapping[Digest, float]:
        """Return the repository's blobs, each with the time of its last use in seconds since the epoch.

        A use is a push, a mount, or a client that was told that the blob is here.
        """

    def has_blob(self, repository: Repository, digest: Digest) -> bool:
        """Return whether the blob was pushed or mounted into the repository.  Counts as a use: see `blobs`."""

    def referrers(
        self, repository: Repository, subject: Digest, last: str | None = None, limit: int = sys.maxsize
    ) -> Sequence[PushedManifest]:
        """Return the manifests with this subject in the order of their digests: at most `limit` after `last`."""

    async def descriptors(
        self, repository: Repository, digests: Sequence[Digest], limit: int
    ) -> Mapping[Digest, bytes]:
        """Read the descriptors of manifests as JSON, with their annotations, in the order of `digests`.

        Stops before the descriptor that would exceed `limit` bytes in total, but returns at least one.  Unknown digests
        are left out.  Raises `StoreError`.
        """

    def keeps(self, digest: Digest) -> bool:
        """Return whether any repository has the blob or manifest.  Such content is never evicted."""

    def was_pushed(self, digest: Digest) -> bool:
        """Return whether any repository has the content, or had it since the start and `forget` was not called."""

    def let_go(self) -> Collection[Digest]:
        """Return the content that repositories had since the start and have no more.  Its files may still exist."""

    def forget(self, digest: Digest) -> None:
        """Take a digest off `let_go`: its file was removed, or the engine has the content, too."""

    async def add_blob(self, repository: Repository, digest: Digest, size: int) -> None:
        """Add a blob of `size` bytes to a repository.  The blob store must already have it durably."""

    async def add_manifest(self, repository: Repository, manifest: PushedManifest, tags: Iterable[Tag]) -> None:
        """Add a manifest to a repository, and let `tags` name it.  The blob store must already have it durably."""

    async def remove_tag(self, repository: Repository, tag: Tag) -> bool:
        """Remove a tag; return whether it existed."""

    async def remove_manifest(self, repository: Repository, digest: Digest) -> bool:
        """Remove a manifest and all tags that name it; return whether it existed."""

    async def remove_blobs(
        self, repository: Repository, digests: Iterable[Digest], *, unused_since: float = math.inf
    ) -> int:
        """Remove blobs that were not used after `unused_since` (see `blobs`); return how many were removed.

        Other methods no longer return them at once, before the change is on disk.  They return them again if it cannot
        be written.
        """
