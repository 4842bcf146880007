"""Connections whose requests begin when their heads are complete, and whose bodies are read at the reader's pace.

Twisted Web reads a whole body before `render` (twisted#4688).  Here a request can be refused before its body is sent.
"""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableDescriptor, IPushProducer, ISSLTransport
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.server import Request
from zope.interface import implementer

from k3dreg.formats.chunked_body import ChunkedDecoder
from k3dreg.formats.sized_body import CountedDecoder
from k3dreg.oci.errors import BadRequest
from k3dreg.oci.request_target import resolve_target
from k3dreg.reporting.logger import make_logger
from k3dreg.streaming.byte_stream import BATCH
from k3dreg.streaming.content import ISocketConsumer
from k3dreg.web.error_answers import unexpected_answer
from k3dreg.web.request_body import RequestBody

log = make_logger()

# Seconds for which a closing connection is still read from.  Closing it with unread bytes resets it, and the client
# could get the reset before it has read the response.  A client that has read `Connection: close` closes it earlier.
LINGER = 5.0
# Bytes that are read from a connection at once, by Twisted's default.  A large body is read in pieces of a whole batch:
# with the default, reading takes half of the time of a push.
_SMALL_PIECE = 64 * 1024
# Bytes of a request's head, and of one line of it.  1,024 ranges (k3dreg.oci.ranges) have at most 22 bytes each.
_LARGEST_HEAD = 32 * 1024
# Characters of a Content-Length: the largest number of 64 bits has 20.
_LONGEST_LENGTH = 40


@implementer(ISocketConsumer)
class BodyRequest(Request):
    """A request that is rendered as soon as its head is complete, while `body` may still be arriving.

    If `fault` is set, the request is invalid, and the resource must answer with that error.
    """

    body: RequestBody
    fault: BadRequest | None = None
    work: Deferred[None] | None = None  # makes the answer; `interrupt` cancels it
    _begun = False

    def gotLength(self, length: int | None) -> None:
        """Make `body`.  Twisted calls it when the head is complete."""
        channel = cast(BodyChannel, self.channel)
        expects = self.requestHeaders.getRawHeaders(b"Expect", [])
        # Removed, or Twisted would send 100 (Continue) before a handler reads the body (RFC 9110, 10.1.1).
        self.requestHeaders.removeHeader(b"Expect")
        self._awaits_continue = bool(expects) and expects[0].lower() == b"100-continue"
        self.body = self.content = RequestBody(length, channel.flow, self._continue)
        channel.read_in_pieces_for(length)

    def handleContentChunk(self, data: bytes | memoryview) -> None:
        """Write to `body` instead of `content`, which Twisted removes once the request is answered: more may come."""
        self.body.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Begin the request at the first call, when the head is complete; end its body at the second call, if any."""
        if self._begun:
            self.body.end()
        else:
            self._begun = True
            hosts = self.requestHeaders.getRawHeaders(b"Host", [])
            try:
                path, host = resolve_target(path, hosts, version)
            except BadRequest as error:
                self.fault = error
            else:
                self.requestHeaders.setRawHeaders(b"Host", [host])
            super().requestReceived(command, path, version)  # type: ignore[no-untyped-call]

    def processingFailed(self, reason: Failure) -> Failure:
        """Answer an error in k3dreg in the form of OCI errors, where Twisted would write a page of HTML."""
        log.failure("an error in k3dreg while it handled a request", failure=reason)
        if self.startedWriting or self.finished:
            cast(Any, self.transport).abortConnection()
            return reason
        answer = unexpected_answer()
        self.setResponseCode(answer.status)
        for name, value in (*answer.headers, ("Content-Length", str(answer.length))):
            self.responseHeaders.setRawHeaders(name, [value])
        self.write(answer.body)
        self.finish()  # type: ignore[no-untyped-call]
        return reason

    def write(self, data: bytes) -> None:
        """Write bytes of the answer; before the first ones, decide whether the connection is kept after it.

        It is closed if the rest of the request's body is large, or the client waits for 100 (Continue).
        """
        if not self.startedWriting and not self._disconnected:
            channel = cast(BodyChannel, self.channel)
            if not self.body.is_complete and (self._awaits_continue or not self.body.is_small):
                channel.persistent = False
            if not channel.persistent:
                self.responseHeaders.setRawHeaders("Connection", ["close"])
        super().write(data)  # type: ignore[no-untyped-call]

    def bypass_transport(self) -> object:
        """Return the connection if the body can be sent on it directly, by `sendfile`; else None.

        That is after the head was written, and if the body is not chunked.
        """
        if self._disconnected or not self.startedWriting or self.chunked:
            return None
        return self.channel.transport

    def bypassed(self, size: int) -> None:
        """Count `size` bytes of the body that were sent on the connection directly."""
        self.sentLength += size

    def interrupt(self) -> None:
        """Cancel the work on the answer, while the client still waits for it."""
        if self.work is not None:
            self.work.cancel()

    def _continue(self) -> None:
        if self._awaits_continue and not self.startedWriting:
            self._awaits_continue = False
            cast(BodyChannel, self.channel).continue_body()


class BodyChannel(HTTPChannel):
    """A connection whose requests are `BodyRequest`s."""

    MAX_LENGTH = _LARGEST_HEAD
    totalHeadersSize = _LARGEST_HEAD

    _answered: BodyRequest | None = None  # a request that was answered before its body was complete
    _receiving: RequestBody | None = None
    _is_broken = False  # the framing of the request's body is invalid
    _lingering: IDelayedCall | None = None
    _stopped = False
    _timeout_while_stopped: float | None = None

    def headerReceived(self, line: bytes) -> bool:
        """Refuse a Content-Length of thousands of digits, for which Twisted's `int` would raise; pass on the rest."""
        name, _, value = line.partition(b":")
        if len(value) > _LONGEST_LENGTH and name.strip().lower() == b"content-length":
            self._respondToBadRequestAndDisconnect()  # type: ignore[no-untyped-call]
            return False
        return bool(super().headerReceived(line))  # type: ignore[no-untyped-call]

    def allHeadersReceived(self) -> None:
        """Begin a request that has a body.  Twisted's method begins a request without one."""
        super().allHeadersReceived()  # type: ignore[no-untyped-call]
        if self.length != 0:
            request = self.requests[-1]
            self._receiving = request.body
            # k3dreg's decoders copy less than Twisted's, and `ChunkedDecoder` is stricter.
            if self.length is None:
                self._transferDecoder = ChunkedDecoder(request.handleContentChunk, self._finishRequestBody)
            else:
                self._transferDecoder = CountedDecoder(self.length, request.handleContentChunk, self._finishRequestBody)
            request.requestReceived(self._command, self._path, self._version)

    def allContentReceived(self) -> None:
        """End a body; Twisted calls it when the body is complete."""
        self._receiving = None
        if self._stopped:
            self.flow(True)
        super().allContentReceived()  # type: ignore[no-untyped-call]
        answered, self._answered = self._answered, None
        if answered is not None:
            self.requestDone(answered)

    def requestDone(self, request: Any) -> None:
        """End a request whose answer is complete; if its body is not, wait for the rest or close the connection."""
        if self._transferDecoder is None:
            super().requestDone(request)  # type: ignore[no-untyped-call]
        elif self.persistent or request.body.is_complete:
            self._answered = request
        else:
            self._linger()

    def read_in_pieces_for(self, length: int | None) -> None:
        """Read larger pieces at a time while a large body arrives, as the cost is per piece."""
        transport: Any = self.transport
        if hasattr(transport, "bufferSize"):
            transport.bufferSize = BATCH if length is None or length > BATCH else _SMALL_PIECE

    def flow(self, on: bool) -> None:
        """Stop or start reading.  While reading is stopped the timeout is off, as the client may be sending."""
        if on == (not self._stopped):
            return
        self._stopped = not on
        producer = self._networkProducer
        if on:
            self.setTimeout(self._timeout_while_stopped)  # type: ignore[no-untyped-call]
            producer.resumeProducing()
        else:
            self._timeout_while_stopped = self.setTimeout(None)  # type: ignore[no-untyped-call]
            producer.pauseProducing()

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Register a producer, and pause it if the transport is full.

        A TLS transport reports once that it is full, which may have been to an earlier producer.
        """
        super().registerProducer(producer, streaming)  # type: ignore[no-untyped-call]
        if streaming and self._waitingForTransport:
            producer.pauseProducing()

    def resumeProducing(self) -> None:
        """Resume the producer when the transport has room, but not reading, which the body's reader stopped."""
        super().resumeProducing()  # type: ignore[no-untyped-call]
        if self._stopped:
            self._networkProducer.pauseProducing()

    def continue_body(self) -> None:
        """Send 100 (Continue), as a handler reads the body."""
        self._send100Continue()  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        """Process received bytes; discard those that arrive after the last answer."""
        if self._lingering is None:
            super().dataReceived(data)  # type: ignore[no-untyped-call]
            if self._receiving is not None:
                self._receiving.arrived()

    def rawDataReceived(self, data: bytes) -> None:
        """Process bytes of a body, unless the connection is closing.

        Bytes of a body that arrived together with its head come here even if the answer is written already.
        """
        if self._lingering is not None or self._is_broken:
            return
        try:
            super().rawDataReceived(data)
        except BadRequest as error:  # from the decoder: it is unknown where the next request begins
            self._is_broken = True
            self.requests[0].body.end(error)

    def connectionLost(self, reason: Any) -> None:  # type: ignore[override]
        """Cancel the timer of `_linger`."""
        self._receiving = None
        if self._lingering is not None and self._lingering.active():
            self._lingering.cancel()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def _linger(self) -> None:
        """Close the connection so that the client gets its answer although it is still sending."""
        del self.requests[0]
        # The body may have stopped the reading, and nothing reads it any more.
        self.flow(True)
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        transport: Any = self.transport
        self._lingering = self.callLater(LINGER, transport.abortConnection)  # type: ignore[no-untyped-call]
        # A TLS transport also provides `IHalfCloseableDescriptor`, but half-closing the connection under it would break
        # the closing of TLS.
        if IHalfCloseableDescriptor.providedBy(self.transport) and not ISSLTransport.providedBy(self.transport):
            transport.unregisterProducer()
            transport.loseWriteConnection()
        else:
            self.loseConnection()  # type: ignore[no-untyped-call]
