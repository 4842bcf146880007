"""Lists in pages (distribution-spec 1.1, "Listing Tags")."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from attrs import frozen

from k3dreg.model.errors import BadRequest

# Names in one page at most.  A tag has at most 128 bytes, so this is some 100 KiB.
LARGEST_PAGE = 1000


def _lexical(name: str) -> tuple[str, str]:
    """ "Lexical (i.e. case-insensitive alphanumeric) order", and one order for what differs in case alone."""
    return name.lower(), name


def in_order(names: Iterable[str]) -> list[str]:
    """Without repetitions, in the order in which they are listed."""
    return sorted(set(names), key=_lexical)


@frozen
class Page:
    """A part of a list.  `more`: whether there is something after it."""

    names: Sequence[str]
    limit: int
    more: bool


def page_of(names: Sequence[str], n: str | None, last: str | None) -> Page:
    """What comes after `last`, which need not be in the list, and at most `n`, of names that are `in_order`.

    `n` and `last` are the parameters of the query.  Raises `BadRequest` for an `n` that is no number.
    """
    limit = LARGEST_PAGE if n is None else _number(n)
    first = 0 if last is None else bisect_right(names, _lexical(last), key=_lexical)
    page = names[first : first + limit]
    # None were asked for: none come next, or the client would go on forever.
    return Page(page, limit, bool(page) and first + limit < len(names))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise BadRequest(f"n= is not a number: {text[:50]!r}")
    # Not `int` of thousands of digits.
    return LARGEST_PAGE if len(text.lstrip("0")) > 9 else min(int(text), LARGEST_PAGE)
