"""Adoption: content that k3dreg or Docker already has becomes part of a repository that a client pushed to."""

from __future__ import annotations

from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, DigestMismatch, EngineError, InvalidManifest, ManifestBlobUnknown, NotFound
from k3dreg.oci.manifest import Manifest
from k3dreg.oci.reference import Reference, Repository
from k3dreg.registry.use_cases import IRegistry
from k3dreg.reporting.trace import Trace
from k3dreg.store.copying import keep
from k3dreg.store.interfaces import IBlobStore, IBlobWriter, IPushed, PushedManifest
from k3dreg.streaming.memory_blob import MemoryBlob
from k3dreg.streaming.workers import Workers

# Levels of indexes in indexes.  Real ones have at most two, and a loop is impossible as digests cannot be guessed.
_DEEPEST = 8
# Digests that a manifest refers to.  Each is looked up.  Engines accept images of 127 layers.
_MOST_PARTS = 10_000


class Adopter:
    """Finds the parts of a pushed manifest, and makes them as durable as what the client sent itself.

    A client does not send a part that k3dreg reports as present: cached from Docker, pushed to another repository, or
    in Docker itself.  None of these parts may disappear once the manifest was acknowledged.
    """

    def __init__(self, store: IBlobStore, pushed: IPushed, registry: IRegistry, workers: Workers) -> None:
        self._store = store
        self._pushed = pushed
        self._registry = registry
        self._workers = workers
        self._sparse_manifests = False
        self._sparse_indexes = False

    def allow_sparse(self, *, manifests: bool, indexes: bool) -> None:
        """Accept or refuse manifests, and indexes, of which parts are missing.  They are refused at first.

        A sparse index may also have manifests that are here and lack parts; these are not added.
        """
        self._sparse_manifests = manifests
        self._sparse_indexes = indexes

    async def adopt_here(self, repository: Repository, digest: Digest) -> bool:
        """Add a blob that is in the store to the repository, durably.  Return False if the store does not have it."""
        # A pushed blob may be missing from the store: its file was removed by hand, or the disk has lost it.
        if self._store.has(digest) and self._pushed.has_blob(repository, digest):
            return True
        release = self._store.hold([digest])
        try:
            if not self._store.has(digest) or not await self._store.make_durable(digest):
                return False
            await self._pushed.add_blob(repository, digest, self._store.size_of(digest))
        finally:
            release()
        return True

    async def adopt_parts(self, repository: Repository, manifest: Manifest, trace: Trace) -> None:
        """Add everything that the manifest refers to as a part of itself to the repository, durably.

        Layers that may not be distributed are left out, as nodes fetch them from elsewhere (image-spec 1.1,
        "Non-Distributable Layers").  So is the subject, which may be pushed later, or never.
        Raises `ManifestBlobUnknown` for a part that neither k3dreg nor Docker has, unless `allow_sparse` permits that.
        """
        await self._adopt_parts(repository, manifest, trace, 0)

    async def _adopt_parts(self, repository: Repository, manifest: Manifest, trace: Trace, depth: int) -> None:
        if depth > _DEEPEST:
            raise ManifestBlobUnknown(f"an index refers to indexes, {depth} deep")
        for part in manifest.children():
            try:
                if part.media_type in media_types.INDEXES | media_types.MANIFESTS and manifest.is_index:
                    await self._adopt_manifest(repository, part, trace, depth)
                elif media_types.is_distributable(part.media_type):
                    await self._adopt_blob(repository, part, trace)
            except ManifestBlobUnknown:
                if not (self._sparse_indexes if manifest.is_index else self._sparse_manifests):
                    raise

    async def _adopt_blob(self, repository: Repository, part: Descriptor, trace: Trace) -> None:
        if await self.adopt_here(repository, part.digest):
            return
        release = self._store.hold([part.digest])
        try:
            blob = await self._registry.blob(repository, part.digest, trace)
            await keep(self._workers, blob, await self._writer(part.digest))
            await self._pushed.add_blob(repository, part.digest, blob.size)
        except (NotFound, EngineError, ContentError) as error:
            raise ManifestBlobUnknown(f"the manifest refers to {part.digest}, which was not pushed") from error
        finally:
            release()

    async def _adopt_manifest(self, repository: Repository, part: Descriptor, trace: Trace, depth: int) -> None:
        if self._store.has(part.digest) and self._pushed.find(Reference(repository, part.digest)) is not None:
            return
        release = self._store.hold([part.digest])
        try:
            blob = self._store.get(part.digest) or await self._registry.blob(repository, part.digest, trace)
            data = await blob.read()
            child = await self._workers.run(_parse, data, part)
            await self._adopt_parts(repository, child, trace, depth + 1)
            if not await self._store.make_durable(part.digest):
                await keep(self._workers, MemoryBlob(part.digest, data), await self._writer(part.digest))
            await self._pushed.add_manifest(repository, pushed_manifest(child, part.digest, len(data)), ())
        except (NotFound, EngineError, ContentError, InvalidManifest) as error:
            raise ManifestBlobUnknown(f"the index refers to {part.digest}, which was not pushed") from error
        finally:
            release()

    async def _writer(self, digest: Digest) -> IBlobWriter:
        def make() -> IBlobWriter:
            return self._store.writer(digest.algorithm, durable=True)

        return await self._workers.acquire(make, lambda writer: writer.abort())


def check_bounds(manifest: Manifest) -> None:
    """Raise `InvalidManifest` for an artifact type or a number of parts that no real manifest has."""
    if len(_artifact_type(manifest)) > media_types.LONGEST_TYPE:
        raise InvalidManifest(
            f"an artifact type or a config's media type has more than {media_types.LONGEST_TYPE} characters"
        )
    parts = {part.digest for part in manifest.children()}
    if len(parts) > _MOST_PARTS:
        raise InvalidManifest(f"a manifest refers to {len(parts)} others; at most {_MOST_PARTS} are accepted")


def _artifact_type(manifest: Manifest) -> str:
    """Return its artifact type, else the config's media type (distribution-spec 1.1, "Listing Referrers")."""
    if manifest.artifact_type or manifest.config is None:
        return manifest.artifact_type
    return manifest.config.media_type


def pushed_manifest(manifest: Manifest, digest: Digest, size: int) -> PushedManifest:
    """Return what is recorded of a manifest of `size` bytes.

    The artifact type and annotations are for the list of referrers.  A manifest without a subject is in no such list,
    so its annotations are left out.
    """
    subject = None if manifest.subject is None else manifest.subject.digest
    annotations = {} if subject is None else manifest.annotations
    descriptor = Descriptor(
        manifest.media_type, digest, size, artifact_type=_artifact_type(manifest), annotations=annotations
    )
    return PushedManifest(descriptor, frozenset(part.digest for part in manifest.children()), subject)


def _parse(data: bytes, part: Descriptor) -> Manifest:
    if Digest.of(data, part.digest.algorithm) != part.digest:
        raise DigestMismatch(f"{part.digest} does not hash to its digest")
    manifest = Manifest.parse(data, part.media_type)
    check_bounds(manifest)
    return manifest
