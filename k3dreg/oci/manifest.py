"""Manifests and indexes: read from bytes, or made for an image that has none.

Bytes are the truth: nothing here writes a manifest again that it has read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from attrs import evolve, field, frozen

from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor, read_annotations, read_text
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import InvalidManifest

# distribution-spec 1.1 asks registries to take manifests of at least 4 MiB; containerd refuses larger ones.
LARGEST_MANIFEST = 4 * 1024 * 1024
# Bytes of a config that is read whole.  Most are below 100 KiB, but labels may hold anything, and containerd nodes take
# configs of 10 MB.
LARGEST_CONFIG = 16 * 1024 * 1024


@frozen
class Manifest:
    """An image manifest, an artifact's manifest, or an index.

    For a manifest `config` and `layers` are set; for an index `manifests`.
    """

    media_type: str
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    manifests: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(factory=dict, eq=False)

    @property
    def is_index(self) -> bool:
        return self.media_type in media_types.INDEXES

    def children(self) -> Iterator[Descriptor]:
        """Everything this document refers to as a part of itself: config and layers, or manifests.  Not `subject`."""
        if self.config is not None:
            yield self.config
        yield from self.layers
        yield from self.manifests

    @classmethod
    def parse(cls, data: bytes, media_type: str = "") -> Manifest:
        """Return the document in `data`.

        Its own `mediaType` counts.  `media_type` is what its descriptor or a Content-Type calls it: it counts for a
        document that has none, and where that is no manifest's type, the document's members tell what it is.
        Registries differ in the Content-Type they send, and Docker keeps what they said as the descriptor's type.
        Raises `InvalidManifest` (or `InvalidDigest`) when it is neither a manifest nor an index.
        """
        if len(data) > LARGEST_MANIFEST:
            raise InvalidManifest(f"a manifest of {len(data)} bytes is larger than {LARGEST_MANIFEST}")
        try:
            # RFC 8259, 8.1: UTF-8 without a byte order mark.  By itself `loads` takes UTF-16 and UTF-32, too.
            value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidManifest("a manifest is not JSON") from error
        if not isinstance(value, dict):
            raise InvalidManifest("a manifest is not a JSON object")
        known = media_type in media_types.MANIFESTS | media_types.INDEXES
        own = read_text(value, "mediaType", "a manifest") or (media_type if known else "")
        # Programs in Go write an empty list as null.
        manifests, layers = (_list(value, key) for key in ("manifests", "layers"))
        annotations = read_annotations(value, "a manifest")
        if not own:
            own = media_types.OCI_INDEX if isinstance(manifests, list) else media_types.OCI_MANIFEST
        subject = value.get("subject")
        read = cls(
            own,
            subject=None if subject is None else Descriptor.from_json(subject),
            artifact_type=read_text(value, "artifactType", "a manifest"),
            annotations=annotations,
        )
        if own in media_types.INDEXES:
            if not isinstance(manifests, list):
                raise InvalidManifest("an index has no manifests")
            return evolve(read, manifests=tuple(map(Descriptor.from_json, manifests)))
        if own in media_types.MANIFESTS:
            if not isinstance(layers, list):
                raise InvalidManifest("a manifest has no layers")
            config = Descriptor.from_json(value.get("config"))
            return evolve(read, config=config, layers=tuple(map(Descriptor.from_json, layers)))
        raise InvalidManifest(f"not the media type of a manifest or an index: {own[:150]!r}")


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _list(value: Mapping[str, object], key: str) -> object:
    """A member that should be a list; a null that is really there is an empty one."""
    return [] if key in value and value[key] is None else value.get(key)


def make_image_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> tuple[Descriptor, bytes]:
    """The manifest of an image whose engine keeps none (the classic store, Podman), and its descriptor.

    `config` gives digest and size of the exact config bytes; `layers` digest (the diffID) and size of the
    uncompressed layer tars, in order.  The same input gives the same bytes in every version of k3dreg:
    nodes compare digests, so this must never change.
    """

    def plain(media_type: str, d: Descriptor) -> dict[str, str | int]:
        return {"mediaType": media_type, "digest": str(d.digest), "size": d.size}

    document = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": plain(media_types.OCI_CONFIG, config),
        "layers": [plain(media_types.OCI_LAYER, layer) for layer in layers],
    }
    data = json.dumps(document, separators=(",", ":")).encode("ascii")
    return Descriptor(media_types.OCI_MANIFEST, Digest.of(data), len(data)), data
