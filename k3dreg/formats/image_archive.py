"""Parse the archive that `docker save` writes, as its bytes arrive.

Three layouts (moby: image/tarexport, daemon/containerd/image_exporter.go; containers/image: docker/internal/tarfile):

- OCI: `blobs/sha256/<hex>`, then `index.json`, `manifest.json`, `oci-layout` (image-spec 1.1, image-layout.md).
  Engine 25 and later, and every engine's containerd store.
- Docker's own, Engine 20.10 to 24: `<id>/{VERSION,json,layer.tar}`, `<hex>.json` (the config), `manifest.json`.
  If two layers are the same, the second `layer.tar` is a link to the first.
- Podman's: as Docker's, but the layers are `<hex>.tar`, and each `<id>/layer.tar` is a link to one of them.

Nothing is unpacked to a disk: links are resolved by name among the archive's own members.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from attrs import evolve, frozen

from k3dreg.formats.archive_index import ArchiveImage, ArchiveIndex, Layout, parse_images, parse_layout, parse_roots
from k3dreg.formats.tar_stream import EntryContent, EntryKind, TarEntry, TarReader
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ArchiveError, InvalidDigest
from k3dreg.oci.manifest import LARGEST_MANIFEST

__all__ = [
    "ArchiveEvent",
    "ArchiveImage",
    "ArchiveIndex",
    "ArchiveReader",
    "BlobBegin",
    "BlobData",
    "BlobEnd",
    "Layout",
]

# Blobs and links.  An image has at most 127 layers on overlay2; an index has some dozen platforms with as many each.
_MOST_MEMBERS = 20_000
# Bytes: PATH_MAX of Linux.  Docker's names have less than 100.
_LONGEST_NAME = 4096
# MAXSYMLINKS of Linux.  The links of Docker and Podman lead directly to a file.
_LONGEST_CHAIN = 40

INDEX, IMAGES, LAYOUT = "index.json", "manifest.json", "oci-layout"
# The documents that are kept in memory, and their largest sizes in bytes.  index.json is a manifest, manifest.json
# repeats the content of manifests, and oci-layout has a single key.
_DOCUMENTS = {INDEX: LARGEST_MANIFEST, IMAGES: LARGEST_MANIFEST, LAYOUT: 4096}

_BLOB = re.compile(r"blobs/([a-z0-9+._-]+)/([^/]+)")
_CONFIG_OR_LAYER = re.compile(r"([a-f0-9]{64})\.(?:json|tar)")
_LEGACY_LAYER = re.compile(r"[^/]+/layer\.tar")


@frozen
class BlobBegin:
    """A blob begins.  `name`: its normalised name in the archive.  `size`: its size in bytes.

    `digest`: the digest in its name, not verified yet; None if the name has none.
    """

    name: str
    digest: Digest | None
    size: int


@frozen
class BlobData:
    """The next bytes of the blob: a view into the bytes that were fed."""

    data: memoryview


@frozen
class BlobEnd:
    """The blob has ended, after `size` bytes."""


ArchiveEvent = BlobBegin | BlobData | BlobEnd

_BLOB_END = BlobEnd()


class ArchiveReader:
    """A push parser: bytes go in, in pieces of any size, and blobs come out.  `finish` returns the archive's index."""

    def __init__(self) -> None:
        self._tar = TarReader()
        self._in_blob = False
        self._document: str | None = None
        self._text = bytearray()
        self._documents: dict[str, bytes] = {}
        self._members: set[str] = set()
        self._links: dict[str, str] = {}  # member to member, both normalised

    def feed(self, data: bytes | memoryview) -> Iterator[ArchiveEvent]:
        """Parse the next bytes and yield their events.  The caller must iterate to the end before the next call.

        Raises `ArchiveError` if the bytes are no image archive, or contain an error message of Docker.  The caller must
        not use the reader afterwards.
        """
        for event in self._tar.feed(data):
            if isinstance(event, EntryContent):
                if self._in_blob:
                    yield BlobData(event.data)
                elif self._document is not None:
                    self._text += event.data
            elif isinstance(event, TarEntry):
                if (begin := self._begin(event)) is not None:
                    yield begin
            elif self._in_blob:
                self._in_blob = False
                yield _BLOB_END
            elif self._document is not None:
                self._documents[self._document] = bytes(self._text)
                self._document = None
                self._text.clear()

    def finish(self) -> ArchiveIndex:
        """Return the archive's index, after its last byte.  Raises `ArchiveError` if the archive is incomplete.

        A complete archive has the end-of-archive marker, which Go's archive/tar, used by all engines, always writes.
        An exporter that failed may write it, too, so the documents at the end of the archive must also be present.
        """
        self._tar.close()
        if not self._tar.complete:
            raise ArchiveError("the image archive ended before its end-of-archive marker")
        documents = self._documents
        is_oci = INDEX in documents or LAYOUT in documents or any(name.startswith("blobs/") for name in self._members)
        for needed in (INDEX, LAYOUT) if is_oci else (IMAGES,):
            if needed not in documents:
                raise ArchiveError(f"the image archive has no {needed}: Docker did not finish it")
        for link in self._links:
            self._resolve(link)
        images = tuple(map(self._with_links_resolved, parse_images(documents[IMAGES]) if IMAGES in documents else ()))
        if is_oci:
            parse_layout(documents[LAYOUT])
            return ArchiveIndex(Layout.OCI, parse_roots(documents[INDEX]), images)
        for image in images:
            for name in (image.config, *image.layers):
                # No error in an OCI archive, because the containerd store also names blobs that it lacks.
                if name not in self._members:
                    raise ArchiveError(f"the image archive lacks {name[:100]!r}, which it says is part of an image")
        return ArchiveIndex(Layout.DOCKER, (), images)

    def _begin(self, entry: TarEntry) -> BlobBegin | None:
        """Return the beginning of a blob; None for an entry that is a document, a link, or ignored."""
        if len(entry.raw_name) > _LONGEST_NAME or len(entry.raw_link) > _LONGEST_NAME:
            raise ArchiveError(f"the image archive has a name of {max(len(entry.raw_name), len(entry.raw_link))} bytes")
        name = normalise(entry.name)
        try:
            name.encode()
        except UnicodeEncodeError:
            return None  # not UTF-8: no engine writes that, and no JSON document could refer to it
        if entry.kind in (EntryKind.SYMLINK, EntryKind.HARD_LINK):
            self._add_link(name, entry)
        elif entry.kind is EntryKind.FILE:
            if name in _DOCUMENTS:
                self._begin_document(name, entry.size)
            else:
                return self._begin_blob(name, entry.size)
        return None  # a link, a document, a directory, or a kind that no engine writes

    def _add_link(self, name: str, entry: TarEntry) -> None:
        if name in _DOCUMENTS:
            raise ArchiveError(f"{name} of the image archive is a link")
        self._add_member(name)
        if entry.link.startswith("/"):
            raise ArchiveError(f"{name[:100]!r} of the image archive is a link out of it, to {entry.link[:100]!r}")
        # A symbolic link's target is relative to the link's directory, a hard link's to the root of the archive.
        directory = name.rpartition("/")[0] if entry.kind is EntryKind.SYMLINK else ""
        self._links[name] = normalise(f"{directory}/{entry.link}" if directory else entry.link)

    def _begin_document(self, name: str, size: int) -> None:
        if name in self._documents:
            raise ArchiveError(f"the image archive has {name} twice")
        if size > _DOCUMENTS[name]:
            raise ArchiveError(f"{name} of the image archive has {size} bytes, more than {_DOCUMENTS[name]}")
        self._document = name

    def _begin_blob(self, name: str, size: int) -> BlobBegin | None:
        digest = claimed_digest(name)
        if digest is None and not _LEGACY_LAYER.fullmatch(name):
            return None
        if digest is not None and name in self._members:
            return None  # a repeated digest: the same bytes, or wrong ones
        self._add_member(name)
        self._members.add(name)
        self._in_blob = True
        return BlobBegin(name, digest, size)

    def _add_member(self, name: str) -> None:
        if name in self._members or name in self._links:
            raise ArchiveError(f"the image archive has {name[:100]!r} twice")
        if len(self._members) + len(self._links) >= _MOST_MEMBERS:
            raise ArchiveError(f"the image archive has more than {_MOST_MEMBERS} blobs")

    def _with_links_resolved(self, image: ArchiveImage) -> ArchiveImage:
        return evolve(image, config=self._resolve(image.config), layers=tuple(map(self._resolve, image.layers)))

    def _resolve(self, name: str) -> str:
        """Follow links from `name`, and return the name at their end, which may be of no member."""
        name = normalise(name)
        passed: set[str] = set()
        while name in self._links:
            if name in passed:
                raise ArchiveError(f"{name[:100]!r} of the image archive is a link that leads to itself")
            passed.add(name)
            if len(passed) > _LONGEST_CHAIN:
                raise ArchiveError(f"{name[:100]!r} of the image archive is behind too many links")
            name = self._links[name]
        return name


def normalise(name: str) -> str:
    """Return a member's name without ".", ".." and empty parts.

    Raises `ArchiveError` if the name is absolute or leads out of the archive.
    """
    if name.startswith("/"):
        raise ArchiveError(f"the image archive has the absolute name {name[:100]!r}")
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                raise ArchiveError(f"the image archive has the name {name[:100]!r}, which leads out of it")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def claimed_digest(name: str) -> Digest | None:
    """Return the digest in a member's normalised name, or None if it has none of a known algorithm."""
    if match := _CONFIG_OR_LAYER.fullmatch(name):
        return Digest.parse(f"sha256:{match[1]}")
    if match := _BLOB.fullmatch(name):
        try:
            return Digest.parse(f"{match[1]}:{match[2]}")
        except InvalidDigest:
            return None  # an unknown algorithm, or no digest: no descriptor that k3dreg reads refers to it
    return None
