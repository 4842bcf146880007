"""A client that sends bytes and shows bytes: for what a well-behaved HTTP client would hide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from attrs import frozen
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientCreator, Protocol, connectionDone
from twisted.internet.tcp import Server
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.server import Site
from zope.interface import provider

reactor = cast(Any, _reactor)


@frozen
class Response:
    """One response, taken apart.  `headers` by lower-case name; `Date` and `X-Request-Id` are left out."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire(Protocol):
    """A connection: write to `transport`, wait for what comes back."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    transport: Any

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason
        self._look()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds.  The connection being lost before that is an error."""
        waiter: Deferred[None] = Deferred()
        self._waiting.append((condition, waiter))
        self._look()
        await waiter

    async def closed(self) -> Failure:
        """Why the connection was lost, when it was."""
        await self.until(lambda: self.lost is not None)
        assert self.lost is not None
        return self.lost

    async def head(self) -> Response:
        """The head of the next response, as soon as it is here, and taken from `received`."""
        await self.until(lambda: b"\r\n\r\n" in self.received)
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        always_new = ("date", "x-request-id")
        headers = {name.lower(): value for name, value in pairs if name.lower() not in always_new}
        assert len(headers) + 2 >= len(pairs), f"a header was sent twice: {pairs}"
        return Response(int(status.split(" ")[1]), headers, b"")

    async def response(self, with_body: bool = True) -> Response:
        """The next response, whole."""
        head = await self.head()
        length = int(head.headers.get("content-length", "0")) if with_body else 0
        await self.until(lambda: len(self.received) >= length)
        body, self.received = self.received[:length], self.received[length:]
        return Response(head.status, head.headers, body)

    async def ask(self, method: str, path: str, **headers: str) -> Response:
        """Send a request and wait for its response.  Underscores in names of headers stand for hyphens."""
        self.transport.write(request(method, path, **headers))
        return await self.response(with_body=method != "HEAD")

    def _look(self) -> None:
        for condition, waiter in self._waiting[:]:
            if condition():
                self._waiting.remove((condition, waiter))
                waiter.callback(None)
            elif self.lost is not None:
                self._waiting.remove((condition, waiter))
                waiter.errback(AssertionError(f"lost ({self.lost.value!r}) after {self.received!r}"))


def request(method: str, path: str, **headers: str) -> bytes:
    """The bytes of a request without a body."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class WireTestCase(TestCase):
    """A test with a real site behind a real socket."""

    timeout = 20

    def setUp(self) -> None:
        self.lines: list[str] = []

        @provider(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event.get("log_namespace", "").startswith("k3dreg"):
                self.lines.append(f"{event['log_level'].name} {formatEvent(event)}")

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def listen(self, site: Site) -> int:
        """The port that `site` is served on until the test ends."""
        port = reactor.listenTCP(0, site, interface="127.0.0.1")

        async def stop() -> None:
            await port.stopListening()
            # A connection that its client has closed ends here when the reactor hears of that.
            for _ in range(100):
                if not any(isinstance(reader, Server) for reader in reactor.getReaders()):
                    break
                await self.turn()

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))
        return int(port.getHost().port)

    async def connect(self, port: int) -> Wire:
        """A new connection, closed when the test ends."""
        wire: Wire = await ClientCreator(reactor, Wire).connectTCP("127.0.0.1", port)
        self.close_in_the_end(wire)
        return wire

    def close_in_the_end(self, wire: Wire) -> None:
        """Close the connection when the test ends."""

        async def close() -> None:
            wire.transport.abortConnection()
            await wire.closed()

        self.addCleanup(lambda: Deferred.fromCoroutine(close()))

    async def logged(self, count: int = 1) -> list[str]:
        """The lines of the log, when there are `count` of them."""
        while len(self.lines) < count:
            await self.turn()
        return self.lines

    async def turn(self) -> None:
        """Let the reactor do what it can do now, and worker threads: a reactor that never waits keeps Python's lock."""
        turned: Deferred[None] = Deferred()
        reactor.callLater(0.001, turned.callback, None)
        await turned
