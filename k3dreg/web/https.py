"""HTTPS: how a TLS endpoint is listened on, so that plain HTTP that comes to it is told what is wrong."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorSSL
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from zope.interface import implementer

from k3dreg.web.answers import plain_refusal
from k3dreg.web.site import TLS_HANDSHAKE

# OpenSSL's names of what TLS 1.2 may use: keys of one session, and encryption that authenticates (RFC 9325, 4.2).  All
# that TLS 1.3 has is so, and has a list of its own.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:!aNULL"
_ANSWER_TO_HTTP = plain_refusal(b"This port speaks HTTPS, not HTTP.\n")


class TlsChannel(BufferingTLSTransport):
    """One connection.  What is no ClientHello is answered in plain HTTP: OpenSSL would only hang up."""

    transport: Any
    _began = False

    def dataReceived(self, data: bytes) -> None:
        """Bytes as they are on the wire."""
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
    """Of `TlsChannel`s."""

    protocol = TlsChannel
    noisy = False


@implementer(IReactorSSL)
class TlsReactor:
    """A reactor as endpoint strings see it, whose TLS is ours."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listenSSL(
        self, port: int, factory: IProtocolFactory, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """See `IReactorSSL`."""
        contextFactory.getContext().set_cipher_list(_CIPHERS)  # it makes one context, and keeps it
        made = TlsFactory(contextFactory, False, factory, self._reactor)
        listening: IListeningPort = self._reactor.listenTCP(port, made, backlog, interface)
        return listening

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)
