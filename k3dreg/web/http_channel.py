"""Connections whose requests begin when their heads are complete, and whose bodies are read at the reader's pace.

What is not wanted is refused before it was sent.
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
from k3dreg.streaming.content import ISocketConsumer
from k3dreg.web.error_answers import unexpected_answer
from k3dreg.web.request_body import RequestBody

log = make_logger()

# Seconds for which a connection that is to be closed is still read from.  Closing it with bytes unread resets it, and
# the reset may overtake the answer.  A client that has read `Connection: close` closes it before.
LINGER = 5.0
# Bytes that are read from a connection at once; the smaller is Twisted's.  With it, reading is half of the work of a
# push.  Beyond the larger nothing is gained: the kernel seldom has more.
_SMALL_PIECE = 64 * 1024
_LARGE_PIECE = 256 * 1024
# Bytes of a request's head, and of one line of it.  1,024 ranges (k3dreg.oci.ranges) have at most 22 each.
_LARGEST_HEAD = 32 * 1024
# Characters of a Content-Length: the largest number of 64 bits has 20.
_LONGEST_LENGTH = 40


@implementer(ISocketConsumer)
class BodyRequest(Request):
    """A request that is rendered as soon as its head is complete."""

    body: RequestBody
    fault: BadRequest | None = None  # why the request is no proper one; it has to be answered with that
    work: Deferred[None] | None = None  # on the answer
    _begun = False

    def gotLength(self, length: int | None) -> None:
        """The head is complete."""
        channel = cast(BodyChannel, self.channel)
        expects = self.requestHeaders.getRawHeaders(b"Expect", [])
        # Removed, so that Twisted does not ask for the body before somebody wants it (RFC 9110, 10.1.1).
        self.requestHeaders.removeHeader(b"Expect")
        self._awaits_continue = bool(expects) and expects[0].lower() == b"100-continue"
        self.body = self.content = RequestBody(length, channel.flow, self._continue)
        channel.read_in_pieces_for(length)

    def handleContentChunk(self, data: bytes | memoryview) -> None:
        """Not by way of `content`: that is gone once the request is answered, and there may be a rest."""
        self.body.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Called when the head is complete, and, if there is a body, again at its end."""
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
        """Answer what is a fault of k3dreg in the form of every error: Twisted would write a page of HTML."""
        log.failure("no answer to a request", failure=reason)
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
        """With the first bytes of the answer it is decided whether the connection lives on."""
        if not self.startedWriting and not self._disconnected:
            channel = cast(BodyChannel, self.channel)
            if not self.body.is_complete and (self._awaits_continue or not self.body.is_small):
                channel.persistent = False
            if not channel.persistent:
                self.responseHeaders.setRawHeaders("Connection", ["close"])
        super().write(data)  # type: ignore[no-untyped-call]

    def way_around(self) -> object:
        """The connection, once the head of the answer is on its way and if the body follows as it is."""
        if self._disconnected or not self.startedWriting or self.chunked:
            return None
        return self.channel.transport

    def went_around(self, size: int) -> None:
        """So much of the body was sent."""
        self.sentLength += size

    def interrupt(self) -> None:
        """Cancel the work on the answer, for a client that is still there."""
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

    _answered: BodyRequest | None = None  # before its body was complete
    _receiving: RequestBody | None = None
    _is_broken = False  # what comes is no body
    _lingering: IDelayedCall | None = None
    _stopped = False
    _timeout_while_stopped: float | None = None

    def headerReceived(self, line: bytes) -> bool:
        """A length of thousands of digits is not one, and Python refuses to read it as a number."""
        name, _, value = line.partition(b":")
        if len(value) > _LONGEST_LENGTH and name.strip().lower() == b"content-length":
            self._respondToBadRequestAndDisconnect()  # type: ignore[no-untyped-call]
            return False
        return bool(super().headerReceived(line))  # type: ignore[no-untyped-call]

    def allHeadersReceived(self) -> None:
        """The request begins; without a body it would at once anyway."""
        super().allHeadersReceived()  # type: ignore[no-untyped-call]
        if self.length != 0:
            request = self.requests[-1]
            self._receiving = request.body
            # Ours copy less, and ours of chunks refuses more.
            if self.length is None:
                self._transferDecoder = ChunkedDecoder(request.handleContentChunk, self._finishRequestBody)
            else:
                self._transferDecoder = CountedDecoder(self.length, request.handleContentChunk, self._finishRequestBody)
            request.requestReceived(self._command, self._path, self._version)

    def allContentReceived(self) -> None:
        """A body is complete."""
        self._receiving = None
        if self._stopped:
            self.flow(True)
        super().allContentReceived()  # type: ignore[no-untyped-call]
        answered, self._answered = self._answered, None
        if answered is not None:
            self.requestDone(answered)

    def requestDone(self, request: Any) -> None:
        """An answer is complete; the body of its request may not be."""
        if self._transferDecoder is None:
            super().requestDone(request)  # type: ignore[no-untyped-call]
        elif self.persistent or request.body.is_complete:
            self._answered = request
        else:
            self._linger()

    def read_in_pieces_for(self, length: int | None) -> None:
        """Read larger pieces at a time while a large body comes: each costs the same."""
        transport: Any = self.transport
        if hasattr(transport, "bufferSize"):
            transport.bufferSize = _LARGE_PIECE if length is None or length > _LARGE_PIECE else _SMALL_PIECE

    def flow(self, on: bool) -> None:
        """Stop or start reading; the time for which a body is stopped is not the client's silence."""
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
        """A transport that is full says so once, if it is TLS: to the producer before this one, it may be."""
        super().registerProducer(producer, streaming)  # type: ignore[no-untyped-call]
        if streaming and self._waitingForTransport:
            producer.pauseProducing()

    def resumeProducing(self) -> None:
        """The transport has sent what it had, which says nothing about who reads the body."""
        super().resumeProducing()  # type: ignore[no-untyped-call]
        if self._stopped:
            self._networkProducer.pauseProducing()

    def continue_body(self) -> None:
        """The body is wanted."""
        self._send100Continue()  # type: ignore[no-untyped-call]

    def dataReceived(self, data: bytes) -> None:
        """What comes after the last answer is thrown away."""
        if self._lingering is None:
            super().dataReceived(data)  # type: ignore[no-untyped-call]
            if self._receiving is not None:
                self._receiving.arrived()

    def rawDataReceived(self, data: bytes) -> None:
        """As `dataReceived`: a body that came together with its head is still being handed on."""
        if self._lingering is not None or self._is_broken:
            return
        try:
            super().rawDataReceived(data)
        except BadRequest as error:  # by our own decoder: nothing tells where the next request would begin
            self._is_broken = True
            self.requests[0].body.end(error)

    def connectionLost(self, reason: Any) -> None:  # type: ignore[override]
        """The end."""
        self._receiving = None
        if self._lingering is not None and self._lingering.active():
            self._lingering.cancel()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def _linger(self) -> None:
        """Close the connection so that the client gets its answer, though it is still sending."""
        del self.requests[0]
        # A body that ended in the middle of what was read may have stopped the reading.
        self.flow(True)
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        transport: Any = self.transport
        self._lingering = self.callLater(LINGER, transport.abortConnection)  # type: ignore[no-untyped-call]
        # What TLS runs over can be half closed, and then TLS, which says so too, is not closed as it should be.
        if IHalfCloseableDescriptor.providedBy(self.transport) and not ISSLTransport.providedBy(self.transport):
            transport.unregisterProducer()
            transport.loseWriteConnection()
        else:
            self.loseConnection()  # type: ignore[no-untyped-call]
