"""Platforms: the operating system and CPU that an image runs on (image-spec 1.1, image-index.md, `platform`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen


@frozen
class Platform:
    """A platform, written as `os/architecture[/variant]`."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Platform:
        """Return the platform in a parsed JSON object.  Missing members are ""."""
        return cls(str(value.get("os") or ""), str(value.get("architecture") or ""), str(value.get("variant") or ""))

    def to_json(self) -> dict[str, str]:
        """Return the JSON object, without an empty variant."""
        out = {"architecture": self.architecture, "os": self.os}
        if self.variant:
            out["variant"] = self.variant
        return out

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))
