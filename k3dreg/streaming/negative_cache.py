"""Cache errors for seconds, so that a client's retries do not each start the work that has just failed."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from attrs import frozen
from cachetools import TLRUCache
from twisted.internet.interfaces import IReactorTime

from k3dreg.oci.errors import K3dregError, NotFound, RateLimited, Refused

K = TypeVar("K", bound=Hashable)

# Seconds.  A node asks for the same image several times within one pull (HEAD, then GET; once for each container of a
# pod), and all nodes of a deployment ask at once.  A kubelet retries after ten seconds: that request must start a new
# pull, because the image may have been pushed, or the user have logged in, since.
FOR = 5.0
# Seconds.  Registries that limit pulls count them over hours (Docker Hub: six), and each attempt may count.
FOR_RATE_LIMITED = 60.0
# Entries.  Some hundred bytes each.
REMEMBERED = 1000


@frozen
class _Entry:
    since: float
    until: float
    error: K3dregError


class NegativeCache(Generic[K]):
    """Errors by key, each kept for seconds.

    A key must contain everything that the answer depends on, including the client's credentials, so that no client
    gets an error that is due to the credentials of another.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._entries: TLRUCache[K, _Entry] = TLRUCache(REMEMBERED, lambda key, entry, now: entry.until, clock.seconds)

    def __len__(self) -> int:
        return len(self._entries)

    def check(self, key: K) -> None:
        """Raise the cached error for `key`, if any."""
        entry = self._entries.get(key)
        # The machine's time may be set back by hours, for which the error would be raised.
        if entry is not None and entry.since <= self._clock.seconds():
            # An exception that is raised again would collect the traceback of every caller.
            raise entry.error.with_traceback(None)

    def remember(self, key: K, error: K3dregError, seconds: float = FOR) -> None:
        """Cache `error` for `seconds`."""
        now = self._clock.seconds()
        self._entries[key] = _Entry(now, now + seconds, error)

    def remember_answer(self, key: K, error: K3dregError) -> None:
        """Cache `error` for `FOR` seconds, or `FOR_RATE_LIMITED` for `RateLimited`, if it is a registry's answer.

        Failures of the engine or of k3dreg are not cached: a retry may succeed at once.
        """
        if isinstance(error, Refused | NotFound):
            self.remember(key, error, FOR_RATE_LIMITED if isinstance(error, RateLimited) else FOR)

    def forget(self, key: K) -> None:
        """Drop the error for `key`, after a success."""
        self._entries.pop(key, None)
