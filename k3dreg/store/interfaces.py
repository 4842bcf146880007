"""Interfaces of k3dreg's own content on disk: blobs, uploads, and what was pushed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from attrs import frozen

from k3dreg.config.retention import RetainRule
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import StoreError
from k3dreg.oci.reference import Reference, Repository, Tag
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
    """A manifest that is pushed into a repository.

    `descriptor` is the manifest's entry in a list of referrers, so it has the `artifact_type` and the annotations.
    `parts`: the digests of the manifest's config, layers or child manifests.
    """

    descriptor: Descriptor
    parts: frozenset[Digest] = frozenset()
    subject: Digest | None = None

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest


@frozen
class PushedImage:
    """A manifest that was pushed, as lists of images show it.

    `tag`: one of its tags, None if it has none.  `since`: the time of the push, and `pulled` that of the last request
    for the tag's manifest, in seconds since the epoch; 0 if unknown.  `contents`: the digests of the manifest and its
    parts, and of the parts of an index's manifests.
    """

    repository: Repository
    tag: str | None
    digest: Digest
    since: float
    contents: frozenset[Digest]
    pulled: float = 0.0


@frozen
class ExpiredTag:
    """A pushed tag that a rule does not keep.  `manifests` are its manifest and, if that is an index, its parts."""

    repository: Repository
    name: str
    rule: RetainRule
    manifests: frozenset[Digest] = frozenset()

    def __str__(self) -> str:
        return f"{self.repository}:{self.name}"


@frozen
class PushedUsage:
    """The disk space that pushed content takes, and that of the tags that rules do not keep, in bytes.

    `freed` counts the content to which nothing else leads.
    """

    bytes: int = 0
    expired: int = 0
    freed: int = 0


@frozen
class Retired:
    """What rules have removed: tags, and the number of manifests to which nothing else leads."""

    tags: tuple[ExpiredTag, ...] = ()
    manifests: int = 0


@frozen
class ReferrersPage:
    """A part of a list of referrers: their descriptors as JSON, in the order of their digests.

    `more`: whether other referrers follow.
    """

    descriptors: Mapping[Digest, bytes]
    more: bool


class IPins(Protocol):
    """Tells which content must never be evicted."""

    def keeps(self, digest: Digest) -> bool:
        """Return whether the content must not be evicted.  Takes some ten microseconds; call it in any thread."""

    def kept(self) -> Mapping[Digest, int]:
        """Return all content that must not be evicted, each with its size in bytes, 0 if unknown.

        Call it in a worker thread.  Raises `StoreError`.
        """


class IPushedReader(Protocol):
    """Tells a pull what was pushed: single rows of the database, which any thread may read.

    All methods raise `StoreError` if the database cannot be read.
    """

    def find(self, reference: Reference) -> Descriptor | None:
        """Return the media type, digest and size of the manifest that was pushed under `reference`, or None.

        A daemon counts this as a pull.
        """

    def has(self, repository: Repository) -> bool:
        """Return whether the repository has a blob or manifest."""

    def has_blob(self, repository: Repository, digest: Digest) -> bool:
        """Return whether the blob was pushed or mounted into the repository.  A daemon counts this as a use of it."""

    def was_pushed(self, digest: Digest) -> bool:
        """Return whether any repository has the content, or had it since the start and `forget` was not called."""


# By the ID of a node's container, the digests of the images that the node holds; None if the node does not tell.
NodeImages = Mapping[str, Collection[Digest] | None]


class IPushed(IPushedReader, IPins, Protocol):
    """What was pushed: repositories, each with its blobs, manifests and tags.  The bytes are in the blob store.

    The coroutines that list read in worker threads.  Those that change something return when the change would survive a
    power failure; from then on, all methods see it.  They raise `StoreFull` or `StoreError` if it cannot be written.
    Cancelling one does not cancel the change.  Changes take effect in the order of the calls.
    """

    async def own_names(self, last: str | None, limit: int) -> Sequence[str]:
        """Return the paths of this registry's own repositories in lexical order: at most `limit` after `last`."""

    async def tags(self, repository: Repository, last: str | None, limit: int) -> Sequence[str]:
        """Return the names of a repository's tags in lexical order: at most `limit` after `last`."""

    async def referrers(
        self, repository: Repository, subject: Digest, artifact_type: str | None, last: str | None, room: int
    ) -> ReferrersPage:
        """Return manifests with this subject, in the order of their digests, after the digest `last`.

        `artifact_type`, unless None, leaves out others.  The page ends before the descriptor that would exceed `room`
        bytes in total, but has at least one.
        """

    async def images(self, limit: int) -> tuple[Sequence[PushedImage], int]:
        """Return the images of the first `limit` tags in the order of their names, and the number of all tags."""

    async def let_go(self) -> Collection[Digest]:
        """Return the content that repositories had since the start and have no more.  Its files may still exist."""

    def forget(self, digest: Digest) -> None:
        """Take a digest off `let_go`: its file was removed, or the engine has the content, too."""

    async def add_blob(self, repository: Repository, digest: Digest, size: int) -> None:
        """Add a blob of `size` bytes to a repository.  The blob store must already have it durably."""

    async def add_manifest(self, repository: Repository, manifest: PushedManifest, tags: Iterable[Tag]) -> None:
        """Add a manifest to a repository, and let `tags` name it.  The blob store must already have it durably."""

    async def remove_tag(self, repository: Repository, tag: Tag) -> bool:
        """Remove a tag; return whether it existed."""

    async def remove_tag_and_manifests(self, repository: Repository, tag: Tag) -> bool:
        """Remove a tag, and the manifests to which nothing else leads; return whether the tag existed."""

    async def retire(self, rules: Sequence[RetainRule], unused_since: float) -> Retired:
        """Remove the tags that the rules do not keep, and the manifests to which nothing else leads.

        Tags that were pulled within the last day stay, and those of images that nodes hold.  So do tags of whose
        manifests a client was told after `unused_since`, in seconds since the epoch: it does not push them.
        A tag is removed together with its manifests, so a process that dies leaves only whole images.
        """

    async def usage(self, rules: Sequence[RetainRule]) -> PushedUsage:
        """Return how much disk space pushed content takes, and how much `retire` would free."""

    async def record_node_images(self, nodes: NodeImages) -> None:
        """Record the digests of the images that each node holds, by the ID of its container.

        What is recorded of a node with None stays.  Nodes that are not in `nodes` are forgotten.
        """

    async def remove_manifest(self, repository: Repository, digest: Digest) -> bool:
        """Remove a manifest and all tags that name it; return whether it existed."""

    async def remove_untagged_manifests(self) -> int:
        """Remove the manifests that no tag leads to: not directly, nor by an index, nor by a subject.

        Returns how many were removed.
        """

    async def remove_blob(self, repository: Repository, digest: Digest) -> bool:
        """Remove a blob from a repository; return whether it existed.

        `has_blob` denies it at once, before the change is on disk, and again admits it if that cannot be written.
        """

    async def remove_idle_blobs(self, unused_since: float) -> int:
        """Remove, as `remove_blob` does, all blobs that no manifest of their repository refers to.

        Those that were used after `unused_since`, in seconds since the epoch, stay.  A use is a push, a mount, or a
        client that was told that the blob is here.  Returns how many were removed.
        """
