"""Platforms: what an image runs on (image-spec 1.1, image-index.md, `platform`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen


@frozen
class Platform:
    """`os/architecture[/variant]`."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Platform:
        """From a parsed JSON object; members that are missing are empty."""
        return cls(str(value.get("os") or ""), str(value.get("architecture") or ""), str(value.get("variant") or ""))

    def to_json(self) -> dict[str, str]:
        """The JSON object, without members that are empty."""
        out = {"architecture": self.architecture, "os": self.os}
        if self.variant:
            out["variant"] = self.variant
        return out

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))
