"""Lists in pages (distribution-spec 1.1, "Listing Tags")."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from k3dreg.oci.errors import BadRequest

# Names in one page.  A tag has at most 128 bytes, so a page of tags has some 100 KiB.
LARGEST_PAGE = 1000


def _lexical(name: str) -> tuple[str, str]:
    """Return a sort key for "lexical (i.e. case-insensitive alphanumeric) order" that no two names share."""
    return name.lower(), name


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names without repetitions, in lexical order."""
    return sorted(set(names), key=_lexical)


class Names:
    """Names without repetitions, in lexical order.  Finding the place of a page is a binary search."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = in_order(names)

    def __len__(self) -> int:
        return len(self._names)

    def after(self, last: str | None, limit: int) -> list[str]:
        """Return at most `limit` names after `last`, which need not be in the list; the first ones if it is None."""
        first = 0 if last is None else bisect_right(self._names, _lexical(last), key=_lexical)
        return self._names[first : first + limit]


def page_limit(n: str | None) -> int:
    """Return the most names that a page may have.  `n` is the query's parameter.

    Raises `BadRequest` if it is no number.
    """
    return LARGEST_PAGE if n is None else _number(n)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise BadRequest(f"n= is not a number: {text[:50]!r}")
    # `int` raises for thousands of digits.
    return LARGEST_PAGE if len(text.lstrip("0")) > 9 else min(int(text), LARGEST_PAGE)
