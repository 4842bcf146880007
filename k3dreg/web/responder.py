"""The one path from a request to its answer on the wire.

A request ends in one of four ways: answered; failed before its headers were written (an error answer); failed after
(the connection is closed before the body is as long as its Content-Length, which is how it shows that it is not
whole: RFC 9112, 8); or its client went away (its work is cancelled).  Each writes one line to the log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress, IConsumer, IDelayedCall, IReactorTime, ITCPTransport
from twisted.python.failure import Failure
from twisted.web.http import PARTIAL_CONTENT
from twisted.web.server import NOT_DONE_YET, Request

from k3dreg import __version__
from k3dreg.oci.errors import DigestMismatch, K3dregError
from k3dreg.reporting.activity import Activity, Progress
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.observer import CANCELLED, observed
from k3dreg.streaming.file_handles import check_descriptors
from k3dreg.streaming.push_producer import ConsumerGone, ConsumerStalled
from k3dreg.streaming.timeout import within
from k3dreg.web.answers import API_VERSION, Answer
from k3dreg.web.error_answers import UNEXPECTED, error_answer, identified, interrupted_answer, unexpected_answer
from k3dreg.web.http_channel import BodyRequest
from k3dreg.web.request_log import CLIENT_GONE, Record

log = make_logger()

# Seconds for what was written of a broken body to reach the client.
CLOSE_SECONDS = 15.0

# Seconds after which a client is told to ask again: the kubelet's first back-off is as long.
_AGAIN_SECONDS = 10.0

_EVERY_ANSWER = (("Server", f"k3dreg/{__version__}"), API_VERSION)


def render(
    request: Request,
    clock: IReactorTime,
    record: Record,
    answer: Callable[[], Awaitable[Answer]],
    seconds: float | None = None,
) -> int:
    """Answer `request` with what `answer` gives, now or later.  Returns what `IResource.render` has to.

    When `answer` takes longer than `seconds`, it is cancelled, and the client is told to ask again.  None: no limit.
    Work that other requests share goes on, so that the next request is answered from its result.
    """
    _Rendering(request, clock, record, seconds).start(answer)
    return NOT_DONE_YET


def when_admitted(
    request: Request, clock: IReactorTime, record: Record, admission: Awaitable[object], go_on: Callable[[], int]
) -> int:
    """Call `go_on`, which answers the request, once `admission` has ended well; else answer with what it raised.

    `admission` is cancelled when the client goes away.
    """
    gone: list[object] = []

    async def admit() -> None:
        failed: Exception | None = None
        try:
            await admission
        except Exception as error:  # noqa: BLE001  (it is the answer's)
            failed = error
        if gone:
            record.write(CLIENT_GONE, 0, 0.0, "the client disconnected before the answer", at=clock.seconds())
        elif failed is None:
            go_on()
        else:
            render(request, clock, record, lambda: _raise(failed))

    # Asked for first: it never fires on a request that is finished already.
    finished = request.notifyFinish()
    cast(BodyRequest, request).work = work = Deferred.fromCoroutine(admit())
    work.addErrback(lambda failure: log.failure("a request's beginning went wrong", failure=failure))

    def client_gone(failure: Failure) -> None:
        gone.append(failure)
        work.cancel()

    finished.addErrback(client_gone)
    return NOT_DONE_YET


async def _coroutine(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    return await ask()


async def _raise(error: Exception) -> Answer:
    raise error


def client_of(request: Request) -> str:
    """The client's address for the log, without its port."""
    address = cast(IAddress, request.getClientAddress())
    # An IPv6 socket that takes IPv4, too, writes those so (RFC 4291, 2.5.5.2).
    return str(getattr(address, "host", None) or "-").removeprefix("::ffff:")


class _Rendering:
    """One request on its way to an answer."""

    def __init__(self, request: Request, clock: IReactorTime, record: Record, seconds: float | None) -> None:
        self._request = request
        self._clock = clock
        self._record = record
        self._seconds = seconds
        self._began = clock.seconds()
        self._head_seconds: float | None = None
        self._gone = False
        self._closing: IDelayedCall | None = None

    def start(self, answer: Callable[[], Awaitable[Answer]]) -> None:
        # Asked for first: it never fires on a request that is finished already.
        finished = self._request.notifyFinish()
        cast(BodyRequest, self._request).work = work = Deferred.fromCoroutine(self._run(answer))
        work.addErrback(lambda failure: log.failure("a request's end went wrong", failure=failure))

        def client_gone(_: Failure) -> None:
            self._gone = True
            work.cancel()
            if self._closing is not None and self._closing.active():
                self._closing.cancel()

        finished.addErrback(client_gone)

    async def _run(self, ask: Callable[[], Awaitable[Answer]]) -> None:
        answer = identified(await self._ask(ask), self._record.id)
        if self._gone:
            self._write_line(CLIENT_GONE, reason="the client disconnected before the answer")
            return
        self._write_head(answer)
        try:
            await self._write_body(answer)
        except Exception as error:  # noqa: BLE001  (whatever it was, the body is broken)
            self._break_off(answer, error)
            return
        if self._left:
            self._write_cut_off(answer, "at the end of the answer")
            return
        self._write_line(answer.status, reason=answer.reason, refusal=answer.refusal)
        self._request.finish()

    async def _ask(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer, whatever happens."""
        try:
            answer = await (
                ask()
                if self._seconds is None
                else within(self._seconds, self._clock, _coroutine(ask), after=_AGAIN_SECONDS)
            )
            if answer.parts:
                # The file is opened when its first byte is sent: too late for another status.
                check_descriptors()
        except K3dregError as error:
            return error_answer(error)
        except CancelledError:
            return interrupted_answer()
        except Exception:  # noqa: BLE001  (a fault of k3dreg is told to the log, not to the client)
            log.failure("no answer to {method} {subject}", method=self._record.method, subject=self._record.subject)
            return unexpected_answer()
        return answer

    def _write_head(self, answer: Answer) -> None:
        """Status and headers, at once: a node waits 30 s for them, and longer for the first byte of the body."""
        request = self._request
        request.setResponseCode(answer.status)
        set_header = request.responseHeaders.setRawHeaders
        self._head_seconds = self._clock.seconds() - self._began
        for name, value in (*_EVERY_ANSWER, ("X-Request-Id", self._record.id), *answer.headers):
            set_header(name, [value])
        if answer.length is not None:
            set_header("Content-Length", [str(answer.length)])
        request.write(b"")

    async def _write_body(self, answer: Answer) -> None:
        """The body, if there is to be one.  Raises when it is not as long as its headers say."""
        request = self._request
        if request.method == b"HEAD" or answer.length is None:
            return
        if answer.parts:
            length, record = answer.length, self._record
            activity = Activity(
                "transfer",
                f"{record.subject} to {record.client}",
                self._clock.seconds(),
                lambda: Progress(request.sentLength, length),
                request_id=record.id,
            )
            with observed(record.observer, activity, self._clock):
                for part in answer.parts:
                    if part.head:
                        request.write(part.head)
                    await part.blob.send(cast(IConsumer, request), part.start, part.stop)
        request.write(answer.body)
        if request.sentLength != answer.length and not self._left:
            raise RuntimeError(f"a body of {answer.length} bytes ended after {request.sentLength}")

    def _break_off(self, answer: Answer, error: BaseException) -> None:
        """End the connection, never the answer: `finish()` would pass a broken body off as a whole one.

        containerd was seen (1.6, 1.7, 2.1) to fail a whole pull when a connection is reset, and to ask for the rest
        with a Range when it is closed.  So it is closed, after what was written has been sent, where more of the
        same can be given; and reset where the bytes were wrong, or the client takes none.
        """
        abort = cast(ITCPTransport, self._request.transport).abortConnection
        stalled = isinstance(error, ConsumerStalled)
        if self._left or (isinstance(error, ConsumerGone) and not stalled):
            self._write_cut_off(answer, "in the middle of the answer")
            if not self._left:
                abort()
            return
        resumable = False
        refusal = type(error).__name__ if isinstance(error, K3dregError) else UNEXPECTED
        if isinstance(error, CancelledError):
            reason, resumable, refusal = "the sending was cancelled", True, CANCELLED
        elif stalled or isinstance(error, K3dregError):
            reason, resumable = str(error), not (stalled or isinstance(error, DigestMismatch))
        else:
            reason = "an error in k3dreg"
            log.failure(
                "no end of {method} {subject}",
                failure=Failure(error),
                method=self._record.method,
                subject=self._record.subject,
            )
        self._write_line(answer.status, reason=reason, aborted=True, refusal=refusal)
        if resumable:
            self._closing = self._clock.callLater(CLOSE_SECONDS, abort)
            self._request.loseConnection()
        else:
            abort()

    @property
    def _left(self) -> bool:
        """Whether the client is gone.  A lost connection tells its producer before it tells the request."""
        return self._gone or not getattr(self._request.transport, "connected", True)

    def _write_cut_off(self, answer: Answer, where: str) -> None:
        """Write the line of an answer whose client closed the connection.

        Clients ask for all from some byte on and close the connection when they have what they need of it: containerd
        2.1 does with `concurrent_layer_fetch_buffer`.  So the end of a range is no failure.
        """
        if answer.status == PARTIAL_CONTENT:
            self._write_line(answer.status, reason=f"the client closed the connection {where}")
        else:
            self._write_line(CLIENT_GONE, reason=f"the client disconnected {where}")

    def _write_line(self, status: int, *, reason: str = "", aborted: bool = False, refusal: str = "") -> None:
        now = self._clock.seconds()
        self._record.write(
            status,
            self._request.sentLength,
            now - self._began,
            reason,
            aborted,
            at=now,
            head_seconds=now - self._began if self._head_seconds is None else self._head_seconds,
            refusal=refusal,
        )
