"""Media types of manifests, configs and layers (image-spec 1.1, media-types.md; Docker's manifest v2, schema 2)."""

from __future__ import annotations

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
# Without a suffix, a layer must be uncompressed: containerd does not detect compression (core/images/mediatypes.go).
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
OCTET_STREAM = "application/octet-stream"

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})

# Layers that registries may not distribute.  Docker never exports them, so they do not count as missing (image-spec
# 1.1, layer.md, "Non-Distributable Layers"; Docker's foreign layers).
_NOT_DISTRIBUTABLE = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)


def is_distributable(media_type: str) -> bool:
    """Return whether a layer of this media type may be distributed, so that an export must have it."""
    return not media_type.startswith(_NOT_DISTRIBUTABLE)


# Characters of a media type: two names of at most 127 (RFC 6838, 4.2) and a slash.
LONGEST_TYPE = 255
