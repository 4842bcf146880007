"""Find out what an export holds: the image's root, and which of its parts were exported."""

from __future__ import annotations

import json
from collections.abc import Mapping

from attrs import evolve, frozen

from k3dreg.docker.image import EngineImage, ImageStore
from k3dreg.formats.image_archive import ArchiveImage, ArchiveIndex
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ArchiveError, ImageIncomplete, InvalidManifest, ManifestUnknown
from k3dreg.oci.manifest import LARGEST_CONFIG, Manifest, make_image_manifest
from k3dreg.store.interfaces import IBlobStore
from k3dreg.streaming.workers import Workers

MISSING_BLOBS_ADVICE = (
    "Docker's containerd image store has lost blobs of this image (moby#49473, moby#53615): "
    "`docker pull` it again with Docker 29.9 or later, or remove it and every image that shares layers with it and pull"
)


LARGE_CONFIG_ADVICE = (
    f"k3dreg serves configs of up to {LARGEST_CONFIG // 1024**2} MiB, and nodes take less: build the image with fewer "
    "or shorter labels, or keep what they hold in a file of the image"
)


@frozen
class Kept:
    """A blob of the archive, verified and in the store.  `was_here`: it was there before and not written again."""

    digest: Digest
    size: int
    was_here: bool


@frozen
class ExportContents:
    """The root of an exported image, and which of its parts the export contained.

    `present` and `absent`, with their sizes in bytes, are the root and everything it refers to, directly or not.
    """

    root: Descriptor
    present: Mapping[Digest, int]
    absent: Mapping[Digest, int]


def check_complete(image: EngineImage) -> None:
    """Raise `ImageIncomplete` if the engine says that it holds no platform of the image whole."""
    platforms = [child for child in image.children if child.kind == "image"]
    if platforms and not any(child.available for child in platforms):
        raise ImageIncomplete(f"Docker lacks layers of {image.id}", advice=MISSING_BLOBS_ADVICE)


async def contents_of(
    image: EngineImage, index: ArchiveIndex, members: Mapping[str, Kept], store: IBlobStore, workers: Workers
) -> ExportContents:
    """Return what the archive of `index`, whose blobs `store` has as `members`, holds of `image`.

    For the classic image store, which has no manifests, this makes one and puts it into `store`.  Raises
    `ImageIncomplete` when no platform of the image is whole.  Raises `ManifestUnknown` when a complete archive does not
    contain the image: the next export would not, either.
    """
    try:
        if image.store is ImageStore.CONTAINERD:
            return await _of_containerd_store(image, index, members, store)
        return await _of_classic_store(image, index, members, store, workers)
    except ArchiveError as error:
        raise ManifestUnknown(f"Docker cannot give {image.id}: {error}") from error


async def _of_containerd_store(
    image: EngineImage, index: ArchiveIndex, members: Mapping[str, Kept], store: IBlobStore
) -> ExportContents:
    if not index.roots:
        raise ArchiveError("Docker's export names no image in its index.json")
    # An export by ID has one root, whose digest is the ID.  Docker 24 may export a reduced index of another digest.
    root = next((root for root in index.roots if root.digest == image.id), index.roots[0])
    came = {kept.digest for kept in members.values()}
    present, absent = {root.digest: root.size}, dict[Digest, int]()
    whole = False
    manifest = await _read_manifest(root, store)
    # Docker's index.json has the media type that the registry sent, which may differ from the manifest's own.
    root = evolve(root, media_type=manifest.media_type)
    to_read = [root]
    while to_read:
        manifest = await _read_manifest(to_read.pop(), store)
        missing = False
        for child in manifest.children():
            if child.digest in came:
                present[child.digest] = child.size
                if manifest.is_index and child.media_type in media_types.MANIFESTS | media_types.INDEXES:
                    to_read.append(child)
            else:
                absent[child.digest] = child.size
                missing = missing or media_types.is_distributable(child.media_type)
        whole = whole or (not manifest.is_index and not missing)
    if not whole:
        raise ImageIncomplete(f"Docker's export of {image.id} lacks layers", advice=MISSING_BLOBS_ADVICE)
    return ExportContents(root, present, {digest: size for digest, size in absent.items() if digest not in present})


async def _read_manifest(described: Descriptor, store: IBlobStore) -> Manifest:
    blob = store.get(described.digest)
    if blob is None:
        raise ArchiveError(f"Docker's export lacks the manifest {described.digest}")
    try:
        return Manifest.parse(await blob.read(), described.media_type)
    except InvalidManifest as error:
        raise ArchiveError(f"Docker's export holds {described.digest}, which is no manifest: {error}") from error


async def _of_classic_store(
    image: EngineImage, index: ArchiveIndex, members: Mapping[str, Kept], store: IBlobStore, workers: Workers
) -> ExportContents:
    for candidate in index.images:
        config = members.get(candidate.config)
        if config is not None and config.digest == image.id:
            return await _made(candidate, config, members, store, workers)
    raise ArchiveError(f"Docker's export does not hold the config {image.id}")


async def _made(
    exported: ArchiveImage, config: Kept, members: Mapping[str, Kept], store: IBlobStore, workers: Workers
) -> ExportContents:
    if config.size > LARGEST_CONFIG:
        raise ManifestUnknown(f"the config {config.digest} has {config.size} bytes", advice=LARGE_CONFIG_ADVICE)
    try:
        layers = [members[name] for name in exported.layers]
    except KeyError as error:
        raise ArchiveError(f"Docker's export lacks the layer {error.args[0]!r}") from None
    blob = store.get(config.digest)
    if blob is None:
        raise ArchiveError(f"the config {config.digest} was evicted before it was read")
    await workers.run(_check_diff_ids, await blob.read(), layers)
    root, data = make_image_manifest(_plain(config), [_plain(layer) for layer in layers])
    await store.put(data)
    return ExportContents(root, {root.digest: root.size, **{kept.digest: kept.size for kept in (config, *layers)}}, {})


def _plain(kept: Kept) -> Descriptor:
    """Return a descriptor of digest and size; `make_image_manifest` sets the media types."""
    return Descriptor("", kept.digest, kept.size)


def _check_diff_ids(config: bytes, layers: list[Kept]) -> None:
    """Raise `ArchiveError` unless the layers are those of the config (image-spec 1.1, config.md, `rootfs.diff_ids`)."""
    try:
        diff_ids = json.loads(config)["rootfs"]["diff_ids"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArchiveError("an image's config has no rootfs.diff_ids") from error
    if diff_ids != [str(layer.digest) for layer in layers]:
        raise ArchiveError("the layers in Docker's export are not those of the image's config")
