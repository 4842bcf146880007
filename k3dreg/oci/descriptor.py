"""Descriptors: content by media type, digest and size (image-spec 1.1, descriptor.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import InvalidManifest
from k3dreg.oci.platform import Platform


@frozen
class Descriptor:
    """The media type, digest and size (in bytes) of some content, with optional attributes.

    Two descriptors may be equal although their annotations differ.
    """

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(factory=dict, eq=False)

    @classmethod
    def from_json(cls, value: object) -> Descriptor:
        """Return the descriptor in a parsed JSON value.  Raises `InvalidManifest` or `InvalidDigest`."""
        if not isinstance(value, dict):
            raise InvalidManifest("a descriptor is not an object")
        digest, size = value.get("digest"), value.get("size")
        if not isinstance(digest, str):
            raise InvalidManifest("a descriptor lacks its digest")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidManifest("a descriptor's size is not a number of bytes")
        platform = value.get("platform")
        return cls(
            read_text(value, "mediaType", "a descriptor"),
            Digest.parse(digest),
            size,
            Platform.from_json(platform) if isinstance(platform, dict) else None,
            read_text(value, "artifactType", "a descriptor"),
            read_annotations(value, "a descriptor"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without empty members, in the order of the specification."""
        out: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.annotations:
            out["annotations"] = dict(self.annotations)
        if self.platform is not None:
            out["platform"] = self.platform.to_json()
        if self.artifact_type:
            out["artifactType"] = self.artifact_type
        return out


def read_text(value: Mapping[str, object], key: str, what: str) -> str:
    """Return a text member of a JSON object; "" if it is absent or null.

    Raises `InvalidManifest`, whose text calls the object `what`, for any other value.
    """
    return _text(value.get(key), f"{what}'s {key}")


def read_annotations(value: Mapping[str, object], what: str) -> dict[str, str]:
    """Return the annotations of a JSON object, text by text (image-spec 1.1, annotations.md).

    Null counts as none, because programs in Go write an empty map as null.  Raises `InvalidManifest`, whose text calls
    the object `what`.
    """
    found = value.get("annotations")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidManifest(f"{what}'s annotations are not an object")
    return {_text(key, f"{what}'s annotation"): _text(each, f"{what}'s annotation") for key, each in found.items()}


def _text(value: object, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidManifest(f"{what} is not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a pair of surrogates (RFC 8259, 8.2)
        raise InvalidManifest(f"{what} is not text") from error
    return value
