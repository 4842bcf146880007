"""Looks up pushed content for pulls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentGone
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.own_names import OwnNames
from k3dreg.store.interfaces import IHeldBlobs, IPushedReader
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.memory_blob import MemoryBlob


class PushedLookup:
    """Finds manifests and blobs that were pushed, whichever of this registry's names a client uses."""

    def __init__(
        self, pushed: IPushedReader, store: IHeldBlobs, names: OwnNames, is_engines: Callable[[Digest], bool]
    ) -> None:
        """`is_engines` returns whether content is known to be part of an image in the engine."""
        self._pushed = pushed
        self._store = store
        self._names = names
        self._is_engines = is_engines

    def manifest(self, reference: Reference) -> ServedManifest | None:
        """Return the manifest that was pushed under the reference.

        None also if the manifest's file is gone: a client that gets 404 pushes it again.
        """
        pushed = self._pushed.find(Reference(self._names.own(reference.repository), reference.target))
        if pushed is None or not self._store.has(pushed.digest):
            return None
        return ServedManifest(pushed, partial(self._open, pushed))

    def blob(self, repository: Repository, digest: Digest) -> IBlob | None:
        """Return the blob that was pushed to the repository, else None.

        A blob that was deleted from this repository is not found, even if other repositories have it
        (distribution-spec 1.1, "Deleting Blobs").
        """
        return self._store.get(digest) if self._pushed.has_blob(self._names.own(repository), digest) else None

    def has_repository(self, repository: Repository) -> bool:
        """Return whether anything was pushed to the repository."""
        return self._pushed.has(self._names.own(repository))

    def only_pushed(self, digest: Digest) -> bool:
        """Return whether the digest is or was pushed, to any repository, and is not known to be in Docker."""
        return self._pushed.was_pushed(digest) and not self._is_engines(digest)

    async def _open(self, pushed: Descriptor) -> IBlob:
        blob = self._store.get(pushed.digest)
        if blob is None:
            raise ContentGone(f"{pushed.digest} was pushed, and is not on the disk any more")
        return MemoryBlob(pushed.digest, await blob.read(), pushed.media_type)
