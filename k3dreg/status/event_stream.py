"""Server-sent events (HTML, 9.2) with the parts of the status page that change."""

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

# Seconds between two updates.  Progress bars that move twice a second look smooth, and cost next to nothing.
_EVERY = 0.5
# Seconds after which a comment is sent although nothing has changed, to detect clients whose connection is lost.
_ALIVE = 15.0
# Streams at a time.  Each is for a page that a user has open.
_MOST = 32
# `Retry-After` of a refused stream, in seconds; assets/status.js reloads the page after as many.
_AGAIN = 15.0

Parts = Callable[[], Awaitable[Mapping[str, bytes]]]


class Events:
    """The event streams to all browsers that have the page open.  Call `shutdown` at the end."""

    def __init__(self, parts: Parts, clock: IReactorTime) -> None:
        """`parts` returns the page's parts as they are now, as HTML by name."""
        self._parts = parts
        self._clock = clock
        self._streams: set[_Stream] = set()

    @property
    def is_full(self) -> bool:
        """Whether the limit of streams is reached."""
        return len(self._streams) >= _MOST

    def shutdown(self) -> None:
        """End all streams."""
        for stream in list(self._streams):
            stream.end()

    def refusal(self) -> TooManyViewers:
        """Return the error for a request when `is_full`."""
        return TooManyViewers(f"{_MOST} status pages are live already", after=_AGAIN)

    def render(self, request: Request, record: Record, headers: Headers) -> int:
        """Answer with a stream until the client disconnects.  Return the value for `IResource.render` to return."""
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
    """The stream to one client.  While the client does not read, no updates are made for it."""

    def __init__(self, request: Request, parts: Parts, clock: IReactorTime) -> None:
        self._request = request
        self._parts = parts
        self._clock = clock
        self._paused = False
        self._work: Deferred[None] | None = None

    def run(self) -> Deferred[None]:
        """Begin the stream; fires when the client has disconnected, or after `end`."""
        gone = self._request.notifyFinish()
        self._request.responseHeaders.setRawHeaders("Content-Type", ["text/event-stream"])
        self._request.write(b"")
        self._request.registerProducer(self, True)
        self._work = work = Deferred.fromCoroutine(self._send())
        work.addErrback(self._failed)
        gone.addErrback(lambda _: work.cancel())
        return work

    def end(self) -> None:
        """End the stream and its response."""
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
        """Send no updates, as the client does not read."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Send updates again."""
        self._paused = False

    def stopProducing(self) -> None:
        """Send no updates; `notifyFinish` reports that the client has disconnected."""
        self._paused = True


def _event(name: str, data: bytes) -> bytes:
    """Return an event, with a `data` line for each line of `data`."""
    lines = b"".join(b"data: " + line + b"\n" for line in data.splitlines())
    return b"event: " + name.encode("ascii") + b"\n" + lines + b"\n"
