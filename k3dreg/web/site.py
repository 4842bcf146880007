"""The HTTP server: its connections, their timeouts, and TLS that arrives on a plain port."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport
from twisted.protocols.policies import TimeoutMixin
from twisted.web.resource import IResource
from twisted.web.server import Site

from k3dreg.registry.use_cases import IDiscovery, IRegistry, IUploads
from k3dreg.reporting.observer import NULL_OBSERVER, IObserver
from k3dreg.web.answers import plain_refusal
from k3dreg.web.api import Root
from k3dreg.web.auth import Access
from k3dreg.web.connections import Connections
from k3dreg.web.deletion_api import ManagementHandlers
from k3dreg.web.discovery_api import DiscoveryHandlers
from k3dreg.web.exchange import Handlers
from k3dreg.web.http_channel import LINGER, BodyChannel, BodyRequest
from k3dreg.web.pages import IPages
from k3dreg.web.push_api import PushHandlers

# Seconds without a request until a connection is closed.  containerd keeps idle connections for 30 s and Docker for
# longer.  It is longer than theirs, because a server that closes first may break off the client's next request.
# The head of a request may take as long, from its first byte to its last.
IDLE_SECONDS = 120.0

# The first byte of every TLS connection: a record of type handshake (RFC 8446, 5.1).  No HTTP request begins with it.
TLS_HANDSHAKE = b"\x16"
# Docker and containerd try plain HTTP when the answer to their ClientHello begins with "HTTP/".
_ANSWER_TO_TLS = plain_refusal(b"This port speaks HTTP, not HTTPS.\n")


class Channel(BodyChannel):
    """One connection of `RegistrySite`, which `Connections` counts and closes.  Implements `IConnection`."""

    transport: Any
    site: RegistrySite  # set by Twisted
    _began = False
    _in_head = False
    _abort: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Count the connection."""
        super().connectionMade()  # type: ignore[no-untyped-call]
        self.site.connections.opened(self)

    def dataReceived(self, data: bytes) -> None:
        """Process received bytes; answer a TLS ClientHello with 400 and close the connection at once.

        Docker tries HTTPS first for a registry that may use either, and waits 10 s for the handshake.  A ClientHello
        has no line end, so without this check the connection would wait for its timeout.
        """
        if not self._began:
            self._began = True
            if data.startswith(TLS_HANDSHAKE):
                self.transport.write(_ANSWER_TO_TLS)
                self.loseConnection()  # type: ignore[no-untyped-call]
                return
        elif self._closing:
            return
        super().dataReceived(data)

    @property
    def _closing(self) -> bool:
        return bool(getattr(self.transport, "disconnecting", False))

    def resetTimeout(self) -> None:
        """Restart the timeout, except within the head of a request: a byte now and then must not prolong it."""
        if self.line_mode and self._in_head:
            return
        self._in_head = bool(self.line_mode)
        TimeoutMixin.resetTimeout(self)

    def allHeadersReceived(self) -> None:
        """Count the connection as busy, and begin the request."""
        self.site.connections.began(self)
        super().allHeadersReceived()

    def requestDone(self, request: Any) -> None:
        """End a request whose answer is complete: the next bytes are the head of another request."""
        self._in_head = False
        if request.body.is_complete:
            self.site.connections.ended(self)
        super().requestDone(request)

    def close_idle(self) -> None:
        """Close the connection after sending the bytes that are still in its buffer.

        A TLS connection is closed when the client has answered; after `LINGER` seconds it is aborted.
        """
        if ISSLTransport.providedBy(self.transport):
            self._abort = self.callLater(LINGER, self.transport.abortConnection)  # type: ignore[no-untyped-call]
        self.loseConnection()  # type: ignore[no-untyped-call]

    def close_when_answered(self) -> None:
        """Close the connection after the response to the request that is under way."""
        self.persistent = False

    def interrupt(self) -> None:
        """End the request that is under way: refuse it, or cut off the body of its response."""
        for request in list(self.requests):
            request.interrupt()

    def abort(self) -> None:
        """Close the connection now."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Any) -> None:  # type: ignore[override]
        """Cancel the timer of `close_idle`, and stop counting the connection."""
        if self._abort is not None and self._abort.active():
            self._abort.cancel()
        super().connectionLost(reason)
        self.site.connections.lost(self)


class RegistrySite(Site):
    """A site of `Channel`s.  It writes no access log, as `request_log` writes a line for each request."""

    protocol = Channel  # type: ignore[assignment]  # as Twisted itself has to
    requestFactory = BodyRequest
    noisy = False

    def __init__(self, resource: IResource, *, reactor: IReactorTime, budget: int | None = None) -> None:
        """`budget` is how many connections may be open at a time, None for any number."""
        super().__init__(  # type: ignore[no-untyped-call]
            resource, timeout=IDLE_SECONDS, reactor=reactor, parsePOSTFormSubmission=False
        )
        self.connections = Connections(reactor, budget)

    def startFactory(self) -> None:
        """Do nothing: Twisted's method opens an access log and starts a clock for it."""

    def stopFactory(self) -> None:
        """Do nothing: `startFactory` has opened no log."""

    def acceptableProtocols(self) -> list[bytes]:
        """Return the protocols to offer on a TLS endpoint (ALPN): HTTP/1.1 only, as `Channel` has no HTTP/2."""
        return [b"http/1.1"]


def make_site(
    registry: IRegistry,
    reactor: IReactorTime,
    *,
    uploads: IUploads | None = None,
    discovery: IDiscovery | None = None,
    operations: IPages | None = None,
    observer: IObserver = NULL_OBSERVER,
    access: Access | None = None,
    is_own_host: Callable[[str], bool] = lambda name: False,
    budget: int | None = None,
) -> RegistrySite:
    """Return the factory to listen with.

    Without `uploads` it serves no pushes, and without `discovery` no lists.  `operations` are the pages about the
    daemon; `observer` is told of each request.  `access` decides what a request may do; with None every client may do
    everything.  `is_own_host` tells whether a host name without a port is this registry's, for requests of browsers.

    `reactor` is the clock of timeouts and of the log's durations.  `budget` is how many connections may be open at a
    time, None for any number.  With a budget, pass each listening port to `connections.admit_at` of the site.
    """
    more: list[Handlers] = []
    if uploads is not None:
        more += [PushHandlers(uploads), ManagementHandlers(uploads)]
    if discovery is not None:
        more.append(DiscoveryHandlers(discovery))
    root = Root(registry, reactor, more, observer, operations, access, is_own_host)
    return RegistrySite(root, reactor=reactor, budget=budget)
