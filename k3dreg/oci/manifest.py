"""Manifests and indexes: parsed from bytes, or made for an image that has none.

A parsed manifest is never serialized again: its digest is that of the original bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from attrs import evolve, field, frozen

from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor, read_annotations, read_text
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import InvalidManifest

# Bytes.  distribution-spec 1.1 asks registries to accept manifests of at least 4 MiB; containerd refuses larger ones.
LARGEST_MANIFEST = 4 * 1024 * 1024
# Bytes of a config that is read as a whole.  Most have less than 100 KiB, but labels may hold anything, and nodes with
# containerd accept configs of 10 MB.
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
        """Yield everything this document refers to as its part: config and layers, or manifests.  Not the subject."""
        if self.config is not None:
            yield self.config
        yield from self.layers
        yield from self.manifests

    @classmethod
    def parse(cls, data: bytes, media_type: str = "") -> Manifest:
        """Return the manifest or index in `data`.

        Its type is its own `mediaType`; without one, `media_type`, that of its descriptor or a Content-Type; and if
        that is no manifest's or index's, the document's members decide.  Registries differ in the Content-Type that
        they send, and Docker stores it as the descriptor's media type.
        Raises `InvalidManifest` or `InvalidDigest` if it is neither a manifest nor an index.
        """
        if len(data) > LARGEST_MANIFEST:
            raise InvalidManifest(f"a manifest of {len(data)} bytes is larger than {LARGEST_MANIFEST}")
        try:
            # RFC 8259, 8.1: UTF-8 without a byte order mark.  `loads` of bytes would accept UTF-16 and UTF-32, too.
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
    """Return a member that should be a list; [] for a null, and None for an absent one."""
    return [] if key in value and value[key] is None else value.get(key)


def make_image_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> tuple[Descriptor, bytes]:
    """Return the descriptor and bytes of a manifest for an image whose engine keeps none (classic store, Podman).

    `config` has the digest and size of the exact config bytes.  `layers` have the digests (the diffIDs) and sizes of
    the uncompressed layer tars, in order.  The same input must give the same bytes in every version of k3dreg, because
    nodes compare digests.
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
