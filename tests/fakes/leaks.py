"""What a test leaves behind: open descriptors, held blobs, staged files, answers that are neither read nor closed."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet import reactor as _reactor  # noqa: F401  (its own descriptors are there before any test's)

from k3dreg.store.blob_index import BlobIndex
from k3dreg.streaming.response_body import ResponseBody

T = TypeVar("T")

# Seconds in which what a test has ended may still be closed: by a worker thread, or by the kernel.
_SETTLE = 0.5
# Twisted keeps a descriptor of /dev/null for when there are too many, from the first time that it listens.  Python
# keeps one of /dev/urandom.
_KEPT_BY_OTHERS = ("/dev/null", "/dev/urandom")


def open_descriptors() -> dict[int, str]:
    """This process's descriptors, and what each is of."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that the list was read from
            continue
        if target not in _KEPT_BY_OTHERS:
            found[int(name)] = target
    return found


@contextmanager
def nothing_left(directory: Path) -> Iterator[None]:
    """Raise `AssertionError` at the end of the `with` if something that began in it has not ended.

    That is: a descriptor is open, a store holds a blob, a file lies in a directory `staging` below `directory`, or the
    answer of an engine or a registry has neither been read to its end nor closed, so that its connection is held.
    The cyclic garbage collector is off meanwhile, so that it does not hide what nothing else closes.
    """
    before = open_descriptors()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with _made(BlobIndex) as indexes, _made(ResponseBody) as bodies:
            yield
            left = _after_a_while(
                lambda: [*_descriptors(before), *_holds(indexes), *_unread(bodies), *_staged(directory)]
            )
    finally:
        if was_enabled:
            gc.enable()
    assert not left, f"the test leaves behind: {', '.join(left)}"


@contextmanager
def _made(kind: type[T]) -> Iterator[list[T]]:
    """The instances of `kind` that are made while the `with` lasts."""
    made: list[T] = []
    its: Any = kind
    make = its.__init__

    def watched(self: T, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        make(self, *args, **kwargs)

    its.__init__ = watched
    try:
        yield made
    finally:
        its.__init__ = make


def _after_a_while(look: Callable[[], list[str]]) -> list[str]:
    """What `look` finds, once that is nothing, or `_SETTLE` seconds have passed."""
    end = time.monotonic() + _SETTLE
    while (found := look()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def _descriptors(before: dict[int, str]) -> Iterator[str]:
    for number, target in open_descriptors().items():
        if before.get(number) != target:
            yield f"descriptor {number} of {target}"


def _holds(indexes: Iterable[BlobIndex]) -> Iterator[str]:
    for index in indexes:
        for digest in index.held():
            yield f"a hold of {digest.short}"


def _unread(bodies: Iterable[ResponseBody]) -> Iterator[str]:
    for body in bodies:
        if not body._ended:
            yield f"{body._what}, which goes on"


def _staged(directory: Path) -> Iterator[str]:
    for staging in directory.rglob("staging"):
        if staging.is_dir():
            yield from (f"the file {left}" for left in staging.iterdir())
