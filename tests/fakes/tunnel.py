"""A tunnel from one UNIX socket to another that can be cut."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import IAddress, IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure


class Tunnel(Factory):
    """Connections made to it go on to the socket at `path`.

    With `cut_after`, a connection is lost once so many bytes have come back through it.
    """

    def __init__(self, reactor: Any, path: str) -> None:
        self.reactor = reactor
        self.path = path
        self.cut_after: int | None = None

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _Near(self)


class _Far(Protocol):
    """The side of the server."""

    def __init__(self, near: _Near) -> None:
        self._near = near
        self._passed = 0

    def connectionMade(self) -> None:
        assert self.transport is not None
        assert self._near.transport is not None
        self.transport.registerProducer(self._near.transport, True)  # type: ignore[attr-defined]
        self._near.transport.registerProducer(self.transport, True)  # type: ignore[attr-defined]

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        assert self._near.transport is not None
        self._passed += len(data)
        limit = self._near.tunnel.cut_after
        if limit is not None and self._passed > limit:
            self._near.transport.abortConnection()  # type: ignore[attr-defined]
            self.transport.abortConnection()  # type: ignore[attr-defined]
        else:
            self._near.transport.write(data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self._near.transport is not None:
            self._near.transport.loseConnection()


class _Near(Protocol):
    """The side of the client."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self._far: Any = None
        self._gone = False

    def connectionMade(self) -> None:
        producer: IPushProducer = self.transport  # type: ignore[assignment]
        producer.pauseProducing()
        far = connectProtocol(UNIXClientEndpoint(self.tunnel.reactor, self.tunnel.path), _Far(self))
        far.addCallbacks(self._joined, self._refused)

    def _joined(self, far: _Far) -> None:
        self._far = far
        if self._gone:
            far.transport.loseConnection()  # type: ignore[union-attr]
        else:
            self.transport.resumeProducing()  # type: ignore[union-attr]

    def _refused(self, reason: Failure) -> None:
        assert self.transport is not None
        self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self._far.transport.write(data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._gone = True
        if self._far is not None:
            self._far.transport.loseConnection()
