"""Limits the number of connections, so that file descriptors remain for the files that requests need."""

from __future__ import annotations

import resource
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from k3dreg.reporting.logger import make_logger

log = make_logger()

# Descriptors of the daemon itself: the event loop, listening sockets, the lock, the log, the database with its log,
# the engine's events, and directories that Docker passed.  Eleven are open in an idle daemon without an engine.
_OWN_DESCRIPTORS = 24
# Descriptors for each connection: itself, the file of its request, a duplicate of its socket (`streaming.sendfile`),
# the file of one upload session between two requests, and another connection that is being closed.
_FOR_EACH = 5
# Seconds that a connection must be idle before it may be closed for another.  A client sends its next request, or
# begins a TLS handshake, within this time, and closing the connection then would break that request off.
GRACE = 0.2
# Seconds for responses under way to end when k3dreg stops, and then for the remaining connections to close.  `docker
# stop` kills k3dreg after 10 seconds, and pushed content still has to be synced to the disk within them.
FINISHING = 3.0
CLOSING = 1.0
# Seconds between two log lines.
_LOG_EVERY = 10.0


class IConnection(Protocol):
    """A connection that `Connections` counts and closes."""

    def close_idle(self) -> None:
        """Close the connection, which has no request, after sending the bytes that are still in its buffer."""

    def close_when_answered(self) -> None:
        """Close the connection after the response to the request that is under way."""

    def interrupt(self) -> None:
        """End the request that is under way: refuse it, or cut off the body of its response."""

    def abort(self) -> None:
        """Close the connection now."""


def connection_budget() -> int:
    """Return how many connections this process may have at a time, by its limit of open files (`RLIMIT_NOFILE`)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        limit = 1 << 20
    return max(4, (limit - _OWN_DESCRIPTORS) // _FOR_EACH)


class Connections:
    """Keeps the number of connections within `budget`, if it is not None, and closes them all in `shutdown`.

    Beyond the budget, the connection that has been idle for the longest time is closed.  While every connection has a
    request, the listening ports are paused, so new connections wait in the kernel's queue.
    """

    def __init__(self, clock: IReactorTime, budget: int | None = None) -> None:
        self._clock = clock
        self._budget = budget
        self._ports: list[Any] = []
        self._open: set[IConnection] = set()
        # The time since which each is idle, the longest idle first.
        self._idle: dict[IConnection, float] = {}
        # Connections that are closing: with TLS, the client has to answer first.
        self._closing: set[IConnection] = set()
        self._check: IDelayedCall | None = None
        self._paused = False
        self._lines = _RateLimit(clock)
        self._none_left: Deferred[None] | None = None

    def admit_at(self, port: Any) -> None:
        """Let this listening port, one of Twisted's of TCP or UNIX, be paused and resumed."""
        if self._budget is not None:
            self._ports.append(port)
            self._accept(self._budget)

    def opened(self, connection: IConnection) -> None:
        """Count a new connection, which is idle until `began` is called for it."""
        self._open.add(connection)
        self._idle[connection] = self._clock.seconds()
        if self._budget is not None:
            self._check_in(0)

    def began(self, connection: IConnection) -> None:
        """Note that the connection has a request."""
        self._idle.pop(connection, None)

    def ended(self, connection: IConnection) -> None:
        """Note that the connection's request is answered, so that the connection is idle."""
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
        """Close every connection.  Call it when no port listens any more.

        Idle connections are closed now, others when their request is answered.  After `FINISHING` seconds, requests
        still under way are interrupted.  After `CLOSING` more seconds, connections still open are aborted.
        """
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
        """Call `_look` after `seconds`, or earlier if that is due already.

        Even for 0 seconds it is not called at once: Twisted accepts several connections in one turn of the reactor, and
        at its end sets how many it accepts in the next.
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
            self._pause()  # until a closing connection is lost
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
        """Accept no connection until `_look` finds one lost, or idle for long enough to be closed."""
        if not self._paused:
            self._paused = True
            for port in self._ports:
                port.pauseProducing()

    def _look_again(self) -> None:
        """Check again when the first connection has been idle for long enough; log if none is idle."""
        if self._idle:
            # The connection that is idle for longest has not been idle for `GRACE` seconds.
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
        """Let the ports accept `room` connections in the next turn of the reactor, each its share."""
        for port in self._ports:
            # The most that `twisted.internet.tcp.Port` accepts in one turn.  It sets the number itself after each turn.
            port.numberAccepts = max(1, min(room // len(self._ports), 100))
            port.resumeProducing()


class _RateLimit:
    """Writes at most one log line of each kind in `_LOG_EVERY` seconds, with the number of events since the last."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._counts: dict[str, int] = {}
        self._last: dict[str, float] = {}

    def count(self, kind: str, events: int, text: str, **values: object) -> None:
        """Count `events`, and if a line is due, write `text` with the number as `count`."""
        self._counts[kind] = self._counts.get(kind, 0) + events
        now = self._clock.seconds()
        if kind not in self._last or now - self._last[kind] >= _LOG_EVERY:
            self._last[kind] = now
            log.warn(text, count=self._counts.pop(kind), **values)
