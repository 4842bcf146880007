"""Lists in pages (distribution-spec 1.1, "Listing Tags")."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen

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
    """Names without repetitions, kept in lexical order.

    Finding the place of a name, or of a page, is a binary search.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = in_order(names)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def add(self, name: str) -> None:
        """Add `name`, unless it is there."""
        place = bisect_left(self._names, _lexical(name), key=_lexical)
        if self._names[place : place + 1] != [name]:
            self._names.insert(place, name)

    def discard(self, name: str) -> None:
        """Remove `name`, if it is there."""
        place = bisect_left(self._names, _lexical(name), key=_lexical)
        if self._names[place : place + 1] == [name]:
            del self._names[place]

    def after(self, last: str | None, limit: int) -> list[str]:
        """Return at most `limit` names after `last`, which need not be in the list; the first ones if it is None."""
        first = 0 if last is None else bisect_right(self._names, _lexical(last), key=_lexical)
        return self._names[first : first + limit]


@frozen
class ListPage:
    """A part of a list.  `limit` is the most names that it may have; `more` is whether other names follow."""

    names: Sequence[str]
    limit: int
    more: bool


def page_of(lists: Sequence[Names], n: str | None, last: str | None) -> ListPage:
    """Return at most `n` names after `last`, which need not be in a list, of all `lists` together.

    `n` and `last` are the parameters of the query.  Raises `BadRequest` for an `n` that is no number.
    """
    limit = LARGEST_PAGE if n is None else _number(n)
    found = in_order(name for names in lists for name in names.after(last, limit + 1))
    page = found[:limit]
    # For n=0 there is no next page, or the client would request pages for ever.
    return ListPage(page, limit, bool(page) and len(found) > limit)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise BadRequest(f"n= is not a number: {text[:50]!r}")
    # `int` raises for thousands of digits.
    return LARGEST_PAGE if len(text.lstrip("0")) > 9 else min(int(text), LARGEST_PAGE)
