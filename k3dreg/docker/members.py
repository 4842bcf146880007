"""Members of the engine's JSON documents.  What is missing or of another type is empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def mapping(value: object) -> Mapping[str, Any]:
    """Return `value` if it is an object."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> Sequence[Any]:
    """Return `value` if it is an array."""
    return value if isinstance(value, list) else []


def text(value: object) -> str:
    """Return `value` if it is a string."""
    return value if isinstance(value, str) else ""


def number(value: object) -> int:
    """Return `value` if it is an integer."""
    return value if isinstance(value, int) else 0


def texts(value: object) -> Mapping[str, str]:
    """Return the strings in `value` if it is an object, as labels are."""
    return {name: each for name, each in mapping(value).items() if isinstance(each, str)}
