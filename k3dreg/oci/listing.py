"""Lists in pages (distribution-spec 1.1, "Listing Tags")."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen

from k3dreg.oci.errors import BadRequest

# Names in one page at most.  A tag has at most 128 bytes, so this is some 100 KiB.
LARGEST_PAGE = 1000


def _lexical(name: str) -> tuple[str, str]:
    """ "Lexical (i.e. case-insensitive alphanumeric) order", and one order for what differs in case alone."""
    return name.lower(), name


def in_order(names: Iterable[str]) -> list[str]:
    """Without repetitions, in the order in which they are listed."""
    return sorted(set(names), key=_lexical)


class Names:
    """Names without repetitions, kept in the order in which they are listed.

    A change and a page touch as many names as binary search needs, and those of the page: not all of them.
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
        """Return at most `limit` names that come after `last`, which need not be there; None is before all."""
        first = 0 if last is None else bisect_right(self._names, _lexical(last), key=_lexical)
        return self._names[first : first + limit]


@frozen
class ListPage:
    """A part of a list.  `more`: whether there is something after it."""

    names: Sequence[str]
    limit: int
    more: bool


def page_of(lists: Sequence[Names], n: str | None, last: str | None) -> ListPage:
    """Return at most `n` names after `last`, which need not be there, of all the `lists` together.

    `n` and `last` are the parameters of the query.  Raises `BadRequest` for an `n` that is no number.
    """
    limit = LARGEST_PAGE if n is None else _number(n)
    found = in_order(name for names in lists for name in names.after(last, limit + 1))
    page = found[:limit]
    # None were asked for: none come next, or the client would go on forever.
    return ListPage(page, limit, bool(page) and len(found) > limit)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise BadRequest(f"n= is not a number: {text[:50]!r}")
    # Not `int` of thousands of digits.
    return LARGEST_PAGE if len(text.lstrip("0")) > 9 else min(int(text), LARGEST_PAGE)
