"""Text for messages: of other programs in one line, and numbers with their nouns or units."""

from __future__ import annotations

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def one_line(text: str) -> str:
    """Return a text without control characters and in one line, words separated by one space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def counted(count: int, noun: str) -> str:
    """Return such as `1 layer` or `2 layers`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def size(number: int) -> str:
    """Return a number of bytes with a unit."""
    for unit, length, digits in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1)):
        if number >= length:
            return f"{number / length:.{digits}f} {unit}"
    return f"{number} B"


def age(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
