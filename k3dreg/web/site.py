"""The HTTP server itself: connections, their limits, and what is not HTTP at all."""

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
# longer; a server that closes first races with the client's next request, so it must be the more patient one.
# The same time is given for the head of a request, from its first byte to its last.
IDLE_SECONDS = 120.0

# The first byte of every TLS connection: a record of type handshake (RFC 8446, 5.1).  No HTTP request begins with it.
TLS_HANDSHAKE = b"\x16"
# Docker and containerd take a server for one of plain HTTP when its answer to their ClientHello begins with "HTTP/".
_ANSWER_TO_TLS = plain_refusal(b"This port speaks HTTP, not HTTPS.\n")


class Channel(BodyChannel):
    """One connection."""

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
        """A ClientHello is turned away at once: it holds no line end, so it would wait for its timeout instead.

        Docker tries HTTPS first where a registry may speak either, and waits 10 s for the handshake.
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
        """The head of a request has its time as a whole: one byte now and then does not prolong it."""
        if self.line_mode and self._in_head:
            return
        self._in_head = bool(self.line_mode)
        TimeoutMixin.resetTimeout(self)

    def allHeadersReceived(self) -> None:
        """A request begins."""
        self.site.connections.began(self)
        super().allHeadersReceived()

    def requestDone(self, request: Any) -> None:
        """An answer is complete: what comes next is the head of another request."""
        self._in_head = False
        if request.body.is_complete:
            self.site.connections.ended(self)
        super().requestDone(request)

    def close_idle(self) -> None:
        """Close the connection, after the bytes that are still to be sent.

        A client of TLS may never answer that the connection is closed: it has the time of `LINGER` for that.
        """
        if ISSLTransport.providedBy(self.transport):
            self._abort = self.callLater(LINGER, self.transport.abortConnection)  # type: ignore[no-untyped-call]
        self.loseConnection()  # type: ignore[no-untyped-call]

    def close_when_answered(self) -> None:
        """Take no request after the one that is under way."""
        self.persistent = False

    def interrupt(self) -> None:
        """End the request that is under way: refuse it, or cut off the body of its answer."""
        for request in list(self.requests):
            request.interrupt()

    def abort(self) -> None:
        """Close the connection now."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Any) -> None:  # type: ignore[override]
        """The end."""
        if self._abort is not None and self._abort.active():
            self._abort.cancel()
        super().connectionLost(reason)
        self.site.connections.lost(self)


class RegistrySite(Site):
    """A site of `Channel`s.  It writes no access log: the answers do."""

    protocol = Channel  # type: ignore[assignment]  # as Twisted itself has to
    requestFactory = BodyRequest
    noisy = False

    def __init__(self, resource: IResource, *, reactor: IReactorTime, budget: int | None = None) -> None:
        """`budget`: see `make_site`."""
        super().__init__(  # type: ignore[no-untyped-call]
            resource, timeout=IDLE_SECONDS, reactor=reactor, parsePOSTFormSubmission=False
        )
        self.connections = Connections(reactor, budget)

    def startFactory(self) -> None:
        """Not Twisted's, which starts its access log and a clock for it."""

    def stopFactory(self) -> None:
        """Nothing was started."""

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 alone, should this be behind a TLS endpoint: `Channel` speaks nothing else."""
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
    """The factory to listen with; without `uploads` and `discovery` it serves pulls alone.

    `operations` are the pages about the daemon itself; `observer` is told of requests; `access` is who may do what,
    None for everybody everything.  `is_own_host` tells hosts that are this registry, without their ports, for browsers.

    `reactor` is the clock of timeouts and of the log's seconds.  `budget` is how many connections there may be at a
    time, None for any number; ports are to be given to the site's `connections` then.
    """
    more: list[Handlers] = []
    if uploads is not None:
        more += [PushHandlers(uploads), ManagementHandlers(uploads)]
    if discovery is not None:
        more.append(DiscoveryHandlers(discovery, reactor))
    root = Root(registry, reactor, more, observer, operations, access, is_own_host)
    return RegistrySite(root, reactor=reactor, budget=budget)
