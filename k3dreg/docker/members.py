"""Read members of the engine's JSON documents.  A member that is missing or of another type is taken as empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def mapping(value: object) -> Mapping[str, Any]:
    """Return `value` if it is an object, else `{}`."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> Sequence[Any]:
    """Return `value` if it is an array, else `[]`."""
    return value if isinstance(value, list) else []


def text(value: object) -> str:
    """Return `value` if it is a string, else ""."""
    return value if isinstance(value, str) else ""


def number(value: object) -> int:
    """Return `value` if it is an integer, else 0."""
    return value if isinstance(value, int) else 0


def texts(value: object) -> Mapping[str, str]:
    """Return the members of `value` whose values are strings, such as labels; `{}` if it is not an object."""
    return {name: each for name, each in mapping(value).items() if isinstance(each, str)}
