"""A budget of connections, so that descriptors are left for the files that requests need."""

from __future__ import annotations

import resource
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from k3dreg.reporting.logger import make_logger

log = make_logger()

# Descriptors of the daemon's own: the event loop, listening sockets, the lock, the log, the database with its log,
# the engine's events, and directories that Docker passed.  Eleven are open in an idle daemon without an engine.
_OWN_DESCRIPTORS = 24
# Descriptors for each connection: itself, the file of its request, a duplicate of its socket (`streaming.sendfile`),
# the file of one upload session between two requests, and another connection that is being closed.
_FOR_EACH = 5
# Seconds that a connection may be idle before it makes room for another: a client sends its next request at once, or
# begins a TLS handshake, and closing the connection then would break that request off.
GRACE = 0.2
# Seconds that answers under way have to end when k3dreg stops, and seconds for the rest to close.  `docker stop` kills
# after 10, and what was pushed is still to be synced.
FINISHING = 3.0
CLOSING = 1.0
# Seconds between two log lines.
_LOG_EVERY = 10.0


class IConnection(Protocol):
    """A connection as its budget sees it."""

    def close_idle(self) -> None:
        """Close the connection, which is between two requests, after the bytes that are still to be sent."""

    def close_when_answered(self) -> None:
        """Take no request after the one that is under way."""

    def interrupt(self) -> None:
        """End the request that is under way: refuse it, or cut off the body of its answer."""

    def abort(self) -> None:
        """Close the connection now."""


def connection_budget() -> int:
    """Return how many connections this process may have at a time, by its limit of open files."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        limit = 1 << 20
    return max(4, (limit - _OWN_DESCRIPTORS) // _FOR_EACH)


class Connections:
    """Ends all connections in `shutdown`.  Keeps their number within `budget`, if there is one.

    Beyond the budget, the connection that has been idle for the longest time is closed.  While every connection has a
    request, new ones wait in the kernel's queue: the listening ports are paused.
    """

    def __init__(self, clock: IReactorTime, budget: int | None = None) -> None:
        self._clock = clock
        self._budget = budget
        self._ports: list[Any] = []
        self._open: set[IConnection] = set()
        # Since when each is idle, the longest idle first.
        self._idle: dict[IConnection, float] = {}
        # Told to close, and not closed yet: a client of TLS has to agree.
        self._closing: set[IConnection] = set()
        self._check: IDelayedCall | None = None
        self._paused = False
        self._lines = _RateLimit(clock)
        self._none_left: Deferred[None] | None = None

    def admit_at(self, port: Any) -> None:
        """Pause and resume this listening port.  It is one of Twisted's, of TCP or UNIX."""
        if self._budget is not None:
            self._ports.append(port)
            self._accept(self._budget)

    def opened(self, connection: IConnection) -> None:
        """Count a new connection, which is idle until `began`."""
        self._open.add(connection)
        self._idle[connection] = self._clock.seconds()
        if self._budget is not None:
            self._check_in(0)

    def began(self, connection: IConnection) -> None:
        """Note that the connection has a request."""
        self._idle.pop(connection, None)

    def ended(self, connection: IConnection) -> None:
        """Note that the connection's request is answered."""
        if connection in self._open and connection not in self._closing:
            self._idle[connection] = self._clock.seconds()
            if self._paused:
                self._check_in(GRACE)

    def lost(self, connection: IConnection) -> None:
        """Forget a connection that is closed."""
        self._idle.pop(connection, None)
        self._closing.discard(connection)
        if connection in self._open:
            self._open.remove(connection)
            if self._paused:
                self._check_in(0)
            if not self._open and self._none_left is not None:
                self._none_left.callback(None)

    async def shutdown(self) -> None:
        """End every connection, once no port listens any more.

        Idle ones are closed now, others when their request is answered.  After `FINISHING` seconds what is still under
        way is interrupted, and after `CLOSING` more what is still open is aborted.
        """
        self._ports.clear()
        self._budget = None
        self._paused = False
        if self._check is not None:
            self._check.cancel()
            self._check = None
        for connection in list(self._open):
            if connection in self._idle:
                connection.close_idle()
            else:
                connection.close_when_answered()
        await self._wait(FINISHING)
        for connection in list(self._open):
            connection.interrupt()
        await self._wait(CLOSING)
        for connection in list(self._open):
            connection.abort()
        await self._wait(CLOSING)

    async def _wait(self, seconds: float) -> None:
        """Return when no connection is open, or after `seconds`."""
        if not self._open:
            return
        self._none_left = Deferred()
        self._none_left.addTimeout(seconds, self._clock, onTimeoutCancel=lambda result, timeout: None)
        await self._none_left
        self._none_left = None

    def _check_in(self, seconds: float) -> None:
        """Look at the numbers after `seconds`, or sooner: it is never too soon.

        Not at once, because Twisted accepts several connections in one turn of the reactor and decides only then how
        many it accepts in the next.
        """
        due = self._clock.seconds() + seconds
        if self._check is not None:
            if self._check.getTime() <= due:
                return
            self._check.cancel()
        self._check = self._clock.callLater(seconds, self._look)

    def _look(self) -> None:
        self._check = None
        if self._budget is None:
            return
        excess = len(self._open) - len(self._closing) - self._budget
        if excess > 0:
            excess -= self._close_idle(excess)
        if len(self._closing) > self._budget:
            self._pause()  # until one of them is lost
        elif excess > 0:
            self._pause()
            self._look_again()
        else:
            self._paused = False
            self._accept(max(1, -excess))

    def _close_idle(self, wanted: int) -> int:
        """Close up to `wanted` connections that have been idle long enough; return how many."""
        until = self._clock.seconds() - GRACE
        old = [connection for connection, since in self._idle.items() if since <= until][:wanted]
        for connection in old:
            del self._idle[connection]
            self._closing.add(connection)
            connection.close_idle()
        if old:
            self._lines.count(
                "idle",
                len(old),
                "{count} idle connections closed since the last such line: k3dreg keeps {budget} of them, by its limit "
                "of open files; raise that limit (LimitNOFILE of the service, --ulimit nofile of the container)",
                budget=self._budget,
            )
        return len(old)

    def _pause(self) -> None:
        """Accept no connection until there is room: until one is lost, or has been idle for long enough."""
        if not self._paused:
            self._paused = True
            for port in self._ports:
                port.pauseProducing()

    def _look_again(self) -> None:
        """Wait for a connection that may be closed."""
        if self._idle:
            # The first of them to be closed has not been idle for long enough.
            self._check_in(max(0.0, next(iter(self._idle.values())) + GRACE - self._clock.seconds()))
        else:
            self._lines.count(
                "busy",
                1,
                "all {budget} connections that the limit of open files allows are busy, and new ones wait; raise "
                "that limit (LimitNOFILE of the service, --ulimit nofile of the container)",
                budget=self._budget,
            )

    def _accept(self, room: int) -> None:
        """Let each port accept its share of so many connections in the next turn."""
        for port in self._ports:
            # What `twisted.internet.tcp.Port` accepts at most before it lets the reactor do something else.  It changes
            # the number itself, after each turn.
            port.numberAccepts = max(1, min(room // len(self._ports), 100))
            port.resumeProducing()


class _RateLimit:
    """Log lines, at most one of each kind in ten seconds, which counts the events since the line before."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._counts: dict[str, int] = {}
        self._last: dict[str, float] = {}

    def count(self, kind: str, events: int, text: str, **values: object) -> None:
        """Count `events`, and write the line, with their number as `count`, if it is time."""
        self._counts[kind] = self._counts.get(kind, 0) + events
        now = self._clock.seconds()
        if kind not in self._last or now - self._last[kind] >= _LOG_EVERY:
            self._last[kind] = now
            log.warn(text, count=self._counts.pop(kind), **values)
