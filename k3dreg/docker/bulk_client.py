"""Twisted's HTTP client for bodies of gigabytes.

The engine sends a file in chunks of 32 KiB.  Twisted's client takes 64 KiB from the socket at a time, so that the
engine is woken for each, and copies each byte three times; both cost as much as all the rest of reading a file.
And what goes to the disk need not come by the reactor's thread at all.
Twisted has no public way to say so; where its inside changes, its own way remains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol, Request
from twisted.web.client import _HTTP11ClientFactory
from twisted.web.http import _DataLoss
from twisted.web.iweb import IResponse

from k3dreg.formats.chunked_body import ChunkedDecoder
from k3dreg.oci.errors import BadRequest
from k3dreg.streaming.content import IThreadRead
from k3dreg.streaming.file_handles import Handle
from k3dreg.streaming.sendfile import duplicate_descriptor
from k3dreg.streaming.socket_body import SocketBody

# Bytes.  About what the kernel holds of a UNIX socket (net.core.wmem_default, 208 KiB on all of today's): so the
# engine finds it empty when it is woken.
_PIECE = 256 * 1024
# Seconds for which a worker thread that takes a body waits for the engine's next bytes.
_PATIENCE = 0.02


class _Decoder(ChunkedDecoder):
    """As Twisted's client expects it.  What is no chunked body ends the connection, and the response fails."""

    def noMoreData(self) -> None:
        try:
            super().noMoreData()
        except BadRequest as error:
            raise _DataLoss(str(error)) from error


class _Client(HTTP11ClientProtocol):
    """A `ThreadReadClient`: the protocol of a body finds it as its transport's `client`."""

    _received: Callable[[], None] | None = None
    _delivering = False

    def connectionMade(self) -> None:
        transport = cast(Any, self.transport)
        if hasattr(transport, "bufferSize"):
            transport.bufferSize = _PIECE

    def request(self, request: Request) -> Deferred[IResponse]:
        response = super().request(request)
        self._received = None
        if self._parser is not None:
            self._parser._transferDecoders = {b"chunked": cast(Any, _Decoder)}
            cast(Any, self._transportProxy).client = self
        return response

    def dataReceived(self, data: bytes) -> None:
        self._delivering = True
        try:
            super().dataReceived(data)  # type: ignore[no-untyped-call]
        finally:
            self._delivering = False
        if self._received is not None:
            self._received()

    # -- see `k3dreg.streaming.response_body.ThreadReadClient` -------------------------------------------------

    def tell_received(self, received: Callable[[], None]) -> None:
        self._received = received

    def take(self) -> IThreadRead | None:
        if self._parser is None or self._delivering:  # there may be more in what was received
            return None
        decoder = self._parser.bodyDecoder
        if not isinstance(decoder, _Decoder):
            return None
        descriptor = duplicate_descriptor(self.transport)
        return None if descriptor is None else SocketBody(self, decoder, Handle(descriptor), _PATIENCE)

    def taken(self, count: int, more: list[bytes], end: bytes | None, error: BadRequest | None) -> None:
        """It is given back.  See `k3dreg.streaming.socket_body.SocketConnection`."""
        parser = self._parser
        if parser is None:  # the connection is lost
            return
        decoder = cast(_Decoder, parser.bodyDecoder)
        for data in more:
            decoder.piece(data)
        if error is not None:
            self._giveUp(Failure(error))  # type: ignore[no-untyped-call]
        elif end is not None:
            decoder.end(end)


class ClientFactory(_HTTP11ClientFactory):
    """Makes such clients for a pool, and writes no two lines to the log for each connection."""

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> HTTP11ClientProtocol:
        """A client for one connection."""
        return _Client(self._quiescentCallback)  # type: ignore[no-untyped-call]
