"""The JSON documents of an image archive, which list its images."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator

from attrs import frozen

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ArchiveError, InvalidDigest, InvalidManifest

# Annotation of an index entry that is exported only because it refers to the image, such as a signature (Engine 29.1).
_REFERRER = "io.containerd.manifest.subject"


class Layout(enum.Enum):
    """The layout of an image archive."""

    OCI = "oci"  # image-spec 1.1, image-layout.md; with Docker's manifest.json, too
    DOCKER = "docker"  # manifest.json only: Docker before 25 on the classic store, Podman


@frozen
class ArchiveImage:
    """An image in `manifest.json`: the names of its members in the archive, links resolved, the lowest layer first."""

    config: str
    layers: tuple[str, ...]
    tags: tuple[str, ...] = ()


@frozen
class ArchiveIndex:
    """The contents of a complete archive.

    `roots`: the descriptors in `index.json`, without referrers and each digest once; empty for `Layout.DOCKER`.
    `images`: the entries of `manifest.json`.  They may name members that an OCI archive does not have, because the
    containerd store also names blobs that it lacks.
    """

    layout: Layout
    roots: tuple[Descriptor, ...]
    images: tuple[ArchiveImage, ...]


def parse_roots(data: bytes) -> tuple[Descriptor, ...]:
    """Return the roots in `index.json` (image-spec 1.1, image-layout.md, "index.json").  Raises `ArchiveError`."""
    document = _parse(data, "index.json")
    entries = document.get("manifests") if isinstance(document, dict) else 0
    # Engines 25.0.0 to 25.0.2 do not list untagged images, and Go writes the resulting empty list as null.
    if not isinstance(entries, list | None):
        raise ArchiveError("index.json of the image archive has no list of manifests")
    roots: dict[Digest, Descriptor] = {}
    try:
        for entry in entries or ():
            root = Descriptor.from_json(entry)
            if _REFERRER not in root.annotations:
                roots.setdefault(root.digest, root)  # there is one entry for each tag
    except (InvalidManifest, InvalidDigest) as error:
        raise ArchiveError(f"index.json of the image archive is not understood: {error}") from error
    return tuple(roots.values())


def parse_images(data: bytes) -> tuple[ArchiveImage, ...]:
    """Return the images in `manifest.json` (moby, image/tarexport, `manifestItem`).  Raises `ArchiveError`."""
    document = _parse(data, "manifest.json")
    if not isinstance(document, list):
        raise ArchiveError("manifest.json of the image archive is not a list")
    return tuple(_images(document))


def parse_layout(data: bytes) -> None:
    """Raise `ArchiveError` unless `oci-layout` has a version 1.x (image-spec, image-layout.md, "oci-layout file")."""
    document = _parse(data, "oci-layout")
    version = document.get("imageLayoutVersion") if isinstance(document, dict) else None
    if not isinstance(version, str) or not version.startswith("1."):
        raise ArchiveError(f"the image archive has the OCI layout version {str(version)[:60]!r}, and 1.0 is known")


def _images(document: list[object]) -> Iterator[ArchiveImage]:
    for item in document:
        if not isinstance(item, dict) or not isinstance(item.get("Config"), str):
            raise ArchiveError("manifest.json of the image archive lists an image without a config")
        yield ArchiveImage(item["Config"], _texts(item.get("Layers")), _texts(item.get("RepoTags")))


def _texts(value: object) -> tuple[str, ...]:
    """Return a JSON list of strings as a tuple.  Go writes an empty list as null."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ArchiveError("manifest.json of the image archive has something else where names should be")
    return tuple(value)


def _parse(data: bytes, name: str) -> object:
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{name} of the image archive is not JSON") from error
    return value
