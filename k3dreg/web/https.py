"""TLS endpoints that answer plain HTTP with an error that says what is wrong."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorSSL
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from zope.interface import implementer

from k3dreg.web.answers import plain_refusal
from k3dreg.web.site import TLS_HANDSHAKE

# OpenSSL's names of the ciphers for TLS 1.2: those with forward secrecy and authenticated encryption (RFC 9325, 4.2).
# All ciphers of TLS 1.3 have both, and OpenSSL has a separate list for them.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:!aNULL"
_ANSWER_TO_HTTP = plain_refusal(b"This port speaks HTTPS, not HTTP.\n")


class TlsChannel(BufferingTLSTransport):
    """A TLS connection that answers anything but a ClientHello in plain HTTP, where OpenSSL would only close it."""

    transport: Any
    _began = False

    def dataReceived(self, data: bytes) -> None:
        """Process encrypted bytes from the connection."""
        if not self._began:
            self._began = True
            if not data.startswith(TLS_HANDSHAKE):
                self.transport.write(_ANSWER_TO_HTTP)
                self.transport.loseConnection()
                return
        elif self.transport.disconnecting:
            return
        super().dataReceived(data)  # type: ignore[no-untyped-call]


class TlsFactory(TLSMemoryBIOFactory):
    """A factory of `TlsChannel`s."""

    protocol = TlsChannel
    noisy = False


@implementer(IReactorSSL)
class TlsReactor:
    """A reactor to pass to `serverFromString`, so that `ssl:` endpoints use `TlsChannel` and the ciphers above."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listenSSL(
        self, port: int, factory: IProtocolFactory, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """Listen with `TlsChannel`s on a TCP port; the arguments are those of `IReactorSSL.listenSSL`."""
        contextFactory.getContext().set_cipher_list(_CIPHERS)  # the factory returns the same context at each call
        made = TlsFactory(contextFactory, False, factory, self._reactor)
        listening: IListeningPort = self._reactor.listenTCP(port, made, backlog, interface)
        return listening

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)
