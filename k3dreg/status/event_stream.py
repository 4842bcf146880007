"""Server-sent events (HTML, 9.2): the parts of the status page that move."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from k3dreg.oci.errors import TooManyViewers
from k3dreg.reporting.logger import make_logger
from k3dreg.web.answers import Headers
from k3dreg.web.request_log import CLIENT_GONE, Record

log = make_logger()

# Seconds between two looks.  Bars that move twice a second look alive, and cost next to nothing.
_EVERY = 0.5
# Seconds after which something is sent though nothing changed: else a client that vanished is never noticed.
_ALIVE = 15.0
# Pages that are kept up to date at once: each is looked at by a person.
_MOST = 32
# Seconds after which a page for which there is no place is loaded again: as in assets/status.js.
_AGAIN = 15.0

Parts = Callable[[], Awaitable[Mapping[str, bytes]]]


class Events:
    """Streams to whoever has the page open."""

    def __init__(self, parts: Parts, clock: IReactorTime) -> None:
        """`parts` gives the page's parts as they are now, by name, as HTML."""
        self._parts = parts
        self._clock = clock
        self._streams: set[_Stream] = set()

    @property
    def is_full(self) -> bool:
        """Whether no more streams are taken."""
        return len(self._streams) >= _MOST

    def shutdown(self) -> None:
        """End all streams."""
        for stream in list(self._streams):
            stream.end()

    def refusal(self) -> TooManyViewers:
        """Return the error for one stream too many."""
        return TooManyViewers(f"{_MOST} status pages are live already", after=_AGAIN)

    def render(self, request: Request, record: Record, headers: Headers) -> int:
        """Answer with a stream, until the client goes away.  Returns what `IResource.render` has to."""
        stream = _Stream(request, self._parts, self._clock)
        began = self._clock.seconds()
        self._streams.add(stream)

        def ended(_: object) -> None:
            self._streams.discard(stream)
            now = self._clock.seconds()
            record.write(CLIENT_GONE, request.sentLength, now - began, at=now)

        for name, value in headers:
            request.responseHeaders.setRawHeaders(name, [value])
        stream.run().addBoth(ended)
        return NOT_DONE_YET


@implementer(IPushProducer)
class _Stream:
    """One client.  While it does not read, nothing is collected for it."""

    def __init__(self, request: Request, parts: Parts, clock: IReactorTime) -> None:
        self._request = request
        self._parts = parts
        self._clock = clock
        self._paused = False
        self._work: Deferred[None] | None = None

    def run(self) -> Deferred[None]:
        """Fires when the client is gone, or after `end`."""
        gone = self._request.notifyFinish()
        self._request.responseHeaders.setRawHeaders("Content-Type", ["text/event-stream"])
        self._request.write(b"")
        self._request.registerProducer(self, True)
        self._work = work = Deferred.fromCoroutine(self._send())
        work.addErrback(self._failed)
        gone.addErrback(lambda _: work.cancel())
        return work

    def end(self) -> None:
        """End the stream, as its client sees."""
        if self._work is not None:
            self._work.cancel()

    async def _send(self) -> None:
        sent: dict[str, bytes] = {}
        wrote = self._clock.seconds()
        while True:
            if not self._paused:
                changed = {name: part for name, part in (await self._parts()).items() if sent.get(name) != part}
                sent.update(changed)
                data = b"".join(_event(name, part) for name, part in changed.items())
                if not data and self._clock.seconds() - wrote >= _ALIVE:
                    data = b":\n\n"
                if data:
                    wrote = self._clock.seconds()
                    self._request.write(data)
            await deferLater(self._clock, _EVERY)

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            log.failure("the status page's events ended", failure=failure)
        if self._request.channel is not None:
            self._request.unregisterProducer()
            self._request.finish()

    def pauseProducing(self) -> None:
        """The client reads no more for now."""
        self._paused = True

    def resumeProducing(self) -> None:
        """It reads again."""
        self._paused = False

    def stopProducing(self) -> None:
        """It is gone; `notifyFinish` tells."""
        self._paused = True


def _event(name: str, data: bytes) -> bytes:
    """One event.  A line end in the data begins a `data` line of its own."""
    lines = b"".join(b"data: " + line + b"\n" for line in data.splitlines())
    return b"event: " + name.encode("ascii") + b"\n" + lines + b"\n"
