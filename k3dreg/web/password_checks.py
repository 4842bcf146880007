"""The order in which passwords are checked when clients send more than can be checked at a time."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from k3dreg.oci.errors import NotYet
from k3dreg.streaming.outcome import Waiters

# Checks that wait, of one client and of all clients.  Each belongs to an open connection, so these limit connections,
# too.
MOST_OF_ONE = 250
MOST_WAITING = 500
# Seconds that a check may wait.  containerd waits 30 s for the head of a response (`client_deadline`).  Clients that
# get 503 repeat the request, so a shorter time would only let a client guess faster.
MAX_WAIT = 20.0


@define(eq=False)
class _Check:
    """A password that waits for its check, or is being checked."""

    client: str
    since: float
    start: Callable[[], Deferred[bool]]
    waiters: Waiters[bool] = field(factory=Waiters)


class Checks:
    """Runs checks, a few at a time, so that a client that guesses passwords delays its own checks only.

    Clients take turns.  Of one client's checks the newest runs first: a client that guesses on many connections sends
    the next guess when the last was answered, so its older checks are guesses, too, and a user's check is the newest.
    A check whose requests have all ended is dropped.  Call `close` at the end.
    """

    def __init__(self, clock: IReactorTime, at_once: int) -> None:
        self._clock = clock
        self._at_once = at_once
        self._running = 0
        self._closed = False
        self._by_key: dict[bytes, _Check] = {}
        # Checks that wait, the newest last, by client; the client whose turn is next comes first.
        self._waiting: OrderedDict[str, list[tuple[bytes, _Check]]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many checks wait."""
        return sum(map(len, self._waiting.values()))

    def ask(self, key: bytes, client: str, start: Callable[[], Deferred[bool]]) -> Deferred[bool]:
        """Return the outcome of the check for `key`, which `start` begins unless it waits or runs already.

        `client` is the address of the client.  The Deferred fails with `NotYet` when the check waited for too long or
        was dropped for newer ones, and with `CancelledError` after `close`.  Cancelling it drops the check if no other
        request waits for it and it has not begun.
        """
        if self._closed:
            return fail(CancelledError("k3dreg is stopping"))
        check = self._by_key.get(key)
        if check is None:
            check = self._by_key[key] = _Check(_network_of(client), self._clock.seconds(), start)
            self._waiting.setdefault(check.client, []).append((key, check))
        waiter = check.waiters.add()
        self._make_room(check.client)
        self._next()
        return waiter

    def close(self) -> None:
        """Drop all checks and accept no more; their Deferreds fail with `CancelledError`.

        Checks that run in a worker thread end on their own.
        """
        self._closed = True
        self._waiting.clear()
        checks, self._by_key = list(self._by_key.values()), {}
        for check in checks:
            check.waiters.deliver(Failure(CancelledError("k3dreg is stopping")))

    def _next(self) -> None:
        """Begin waiting checks, up to `at_once` in all."""
        while self._running < self._at_once and self._waiting:
            client, checks = self._waiting.popitem(last=False)
            key, check = checks.pop()
            if checks:
                self._waiting[client] = checks
            if not check.waiters:
                self._by_key.pop(key, None)
                continue
            self._running += 1
            check.start().addBoth(self._ended, key, check)

    def _ended(self, outcome: bool | Failure, key: bytes, check: _Check) -> None:
        self._running -= 1
        if self._by_key.get(key) is check:
            del self._by_key[key]
        self._give_up_old()
        check.waiters.deliver(outcome)
        self._next()

    def _give_up_old(self) -> None:
        until = self._clock.seconds() - MAX_WAIT
        for client, checks in list(self._waiting.items()):
            while checks and (checks[0][1].since <= until or not checks[0][1].waiters):
                self._give_up(client)

    def _make_room(self, client: str) -> None:
        if len(self._waiting.get(client, ())) > MOST_OF_ONE:
            self._give_up(client)
        if len(self) > MOST_WAITING:
            self._give_up(max(self._waiting, key=lambda each: len(self._waiting[each])))

    def _give_up(self, client: str) -> None:
        """Refuse the check of `client` that has waited for longest."""
        checks = self._waiting[client]
        key, check = checks.pop(0)
        if not checks:
            del self._waiting[client]
        del self._by_key[key]
        check.waiters.deliver(Failure(NotYet("too many passwords are being checked", after=1)))


def _network_of(client: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 of an IPv6 address (RFC 6177)."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    return client if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
