"""Refusals are remembered for seconds, so that many retries do not become as many pulls."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from attrs import frozen
from cachetools import TLRUCache
from twisted.internet.interfaces import IReactorTime

from k3dreg.oci.errors import K3dregError, NotFound, RateLimited, Refused

K = TypeVar("K", bound=Hashable)

# Seconds.  A node asks for the same thing several times within one pull (HEAD, then GET; once for each of a pod's
# containers), a deployment's nodes all at once, and a kubelet again after ten seconds: those are to be pulls anew,
# for somebody may have pushed the image or logged in meanwhile.
FOR = 5.0
# Registries that count pulls count them over hours (Docker Hub: six); every one that is tried makes it worse.
FOR_RATE_LIMITED = 60.0
# Entries.  Some hundred bytes each.
REMEMBERED = 1000


@frozen
class _Entry:
    until: float
    error: K3dregError


class NegativeCache(Generic[K]):
    """Refusals by key, for seconds.

    A key holds everything that the answer depends on, the credentials that were shown included: one caller's refusal
    must never be another's.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._entries: TLRUCache[K, _Entry] = TLRUCache(REMEMBERED, lambda key, entry, now: entry.until, clock.seconds)

    def __len__(self) -> int:
        return len(self._entries)

    def check(self, key: K) -> None:
        """Raise the error that is remembered for the key, if any."""
        entry = self._entries.get(key)
        if entry is not None:
            # The same object, raised from several places, would gather their tracebacks.
            raise entry.error.with_traceback(None)

    def remember(self, key: K, error: K3dregError, seconds: float = FOR) -> None:
        """Keep it, if it is the registry's answer.  What went wrong in the engine or here is worth another try."""
        if not isinstance(error, Refused | NotFound):
            return
        if isinstance(error, RateLimited):
            seconds = max(seconds, FOR_RATE_LIMITED)
        self._entries[key] = _Entry(self._clock.seconds() + seconds, error)

    def forget(self, key: K) -> None:
        """Drop the error for `key`, after a success."""
        self._entries.pop(key, None)
