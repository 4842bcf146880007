"""Descriptors: content by media type, digest and size (image-spec 1.1, descriptor.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from k3dreg.model.digest import Digest
from k3dreg.model.errors import InvalidManifest
from k3dreg.model.platform import Platform


@frozen
class Descriptor:
    """What some content is.  `size` in bytes."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(factory=dict, eq=False)

    @classmethod
    def from_json(cls, value: object) -> Descriptor:
        """From a parsed JSON value.  Raises `InvalidManifest` or `InvalidDigest`."""
        if not isinstance(value, dict):
            raise InvalidManifest("a descriptor is not an object")
        media_type, digest, size = value.get("mediaType", ""), value.get("digest"), value.get("size")
        annotations, artifact_type = value.get("annotations") or {}, value.get("artifactType") or ""
        if not isinstance(media_type, str) or not isinstance(digest, str) or not isinstance(artifact_type, str):
            raise InvalidManifest("a descriptor lacks mediaType or digest")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidManifest("a descriptor's size is not a number of bytes")
        if not isinstance(annotations, dict):
            raise InvalidManifest("a descriptor's annotations are not an object")
        platform = value.get("platform")
        return cls(
            media_type,
            Digest.parse(digest),
            size,
            Platform.from_json(platform) if isinstance(platform, dict) else None,
            artifact_type,
            {str(k): str(v) for k, v in annotations.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON object, without members that are empty, in the order the spec lists them."""
        out: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.annotations:
            out["annotations"] = dict(self.annotations)
        if self.platform is not None:
            out["platform"] = self.platform.to_json()
        if self.artifact_type:
            out["artifactType"] = self.artifact_type
        return out
