"""Twisted's HTTP client for bodies of gigabytes.

The engine sends a file in chunks of 32 KiB.  Twisted's client takes 64 KiB from the socket at a time, so that the
engine is woken for each, and copies each byte three times; both cost as much as all the rest of reading a file.
Twisted has no public way to say so; where its inside changes, its own way remains.
"""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.web._newclient import HTTP11ClientProtocol, Request
from twisted.web.client import _HTTP11ClientFactory
from twisted.web.http import _DataLoss
from twisted.web.iweb import IResponse

from k3dreg.model.errors import BadRequest
from k3dreg.protocol.chunked import ChunkedDecoder

# Bytes.  About what the kernel holds of a UNIX socket (net.core.wmem_default, 208 KiB on all of today's): so the
# engine finds it empty when it is woken.
_PIECE = 256 * 1024


class _Decoder(ChunkedDecoder):
    """As Twisted's client expects it.  What is no chunked body ends the connection, and the response fails."""

    def noMoreData(self) -> None:
        try:
            super().noMoreData()
        except BadRequest as error:
            raise _DataLoss(str(error)) from error


class _Client(HTTP11ClientProtocol):
    def connectionMade(self) -> None:
        transport = cast(Any, self.transport)
        if hasattr(transport, "bufferSize"):
            transport.bufferSize = _PIECE

    def request(self, request: Request) -> Deferred[IResponse]:
        response = super().request(request)
        if self._parser is not None:
            self._parser._transferDecoders = {b"chunked": cast(Any, _Decoder)}
        return response


class ClientFactory(_HTTP11ClientFactory):
    """Makes such clients for a pool, and writes no two lines to the log for each connection."""

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> HTTP11ClientProtocol:
        """A client for one connection."""
        return _Client(self._quiescentCallback)  # type: ignore[no-untyped-call]
