"""The one path from a request to its answer on the connection.

A request ends in one of four ways, each with one line in the log:

- It is answered.
- It fails before its headers are written: the client gets an error.
- It fails after that: the connection is closed before the body is as long as its Content-Length, by which the client
  knows that the body is incomplete (RFC 9112, 8).
- The client disconnects: the work for the request is cancelled.
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

# Seconds for the client to receive what was written of a broken body, before the connection is aborted.
CLOSE_SECONDS = 15.0

# `Retry-After` of an answer that came too late, in seconds: as long as the kubelet's first back-off.
_AGAIN_SECONDS = 10.0

_EVERY_ANSWER = (("Server", f"k3dreg/{__version__}"), API_VERSION)


def render(
    request: Request,
    clock: IReactorTime,
    record: Record,
    answer: Callable[[], Awaitable[Answer]],
    seconds: float | None = None,
) -> int:
    """Answer `request` with the result of `answer`, or with the error that it raises.

    Return the value for `IResource.render` to return.  When `answer` takes longer than `seconds`, it is cancelled, and
    the client gets 503 with `Retry-After`; None means no limit.  A pull or export that `answer` waits for goes on, and
    a later request gets its result.
    """
    _Rendering(request, clock, record, seconds).start(answer)
    return NOT_DONE_YET


def when_admitted(
    request: Request, clock: IReactorTime, record: Record, admission: Awaitable[object], go_on: Callable[[], int]
) -> int:
    """Call `go_on`, which answers the request, when `admission` succeeds; else answer with the error that it raises.

    Return the value for `IResource.render` to return.  `admission` is cancelled when the client disconnects.
    """
    gone: list[object] = []

    async def admit() -> None:
        failed: Exception | None = None
        try:
            await admission
        except Exception as error:  # noqa: BLE001  (`render` answers with it)
            failed = error
        if gone:
            record.write(CLIENT_GONE, 0, 0.0, "the client disconnected before the answer", at=clock.seconds())
        elif failed is None:
            go_on()
        else:
            render(request, clock, record, lambda: _raise(failed))

    # Before the work begins: the Deferred of a request that is finished already never fires.
    finished = request.notifyFinish()
    cast(BodyRequest, request).work = work = Deferred.fromCoroutine(admit())
    work.addErrback(lambda failure: log.failure("an error in k3dreg before a request was answered", failure=failure))

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
    """Return the client's address without its port; "-" for a client on a UNIX socket."""
    address = cast(IAddress, request.getClientAddress())
    # An IPv6 socket that accepts IPv4, too, has this prefix before IPv4 addresses (RFC 4291, 2.5.5.2).
    return str(getattr(address, "host", None) or "-").removeprefix("::ffff:")


class _Rendering:
    """The work on one request: gets the answer, writes it, and handles every way in which that may end."""

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
        # Before the work begins: the Deferred of a request that is finished already never fires.
        finished = self._request.notifyFinish()
        cast(BodyRequest, self._request).work = work = Deferred.fromCoroutine(self._run(answer))
        work.addErrback(lambda failure: log.failure("an error in k3dreg after a request was answered", failure=failure))

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
        except Exception as error:  # noqa: BLE001  (after any error the body is incomplete)
            self._break_off(answer, error)
            return
        if self._left:
            self._write_cut_off(answer, "at the end of the answer")
            return
        self._write_line(answer.status, reason=answer.reason, refusal=answer.refusal)
        self._request.finish()

    async def _ask(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return the answer of `ask`, or an error answer for any exception that it raises."""
        try:
            answer = await (
                ask()
                if self._seconds is None
                else within(self._seconds, self._clock, _coroutine(ask), after=_AGAIN_SECONDS)
            )
            if answer.parts:
                # A blob's file is opened after the status was sent.  If no file can be opened, this fails in time.
                check_descriptors()
        except K3dregError as error:
            return error_answer(error)
        except CancelledError:
            return interrupted_answer()
        except Exception:  # noqa: BLE001  (an error in k3dreg is logged, and not shown to the client)
            log.failure(
                "an error in k3dreg while it answered {method} {subject}",
                method=self._record.method,
                subject=self._record.subject,
            )
            return unexpected_answer()
        return answer

    def _write_head(self, answer: Answer) -> None:
        """Write status and headers at once: a node waits 30 s for them, and longer for the first byte of the body."""
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
        """Write the body, if there is one.  Raises if it is not as long as its Content-Length."""
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
        """Close or reset the connection of an incomplete body; `finish()` would let the body pass as complete.

        When a connection is reset, containerd (1.6, 1.7 and 2.1 were tried) fails the whole pull; when it is closed,
        containerd requests the rest with a Range.  So the connection is closed, after sending what was written, if
        k3dreg can send the rest later.  It is reset if the bytes were wrong, or the client does not receive.
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
                "an error in k3dreg while it sent the answer to {method} {subject}",
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
        """Whether the client has disconnected.  The producer of a lost connection hears of it before the request."""
        return self._gone or not getattr(self._request.transport, "connected", True)

    def _write_cut_off(self, answer: Answer, where: str) -> None:
        """Write the line of an answer whose client closed the connection.

        A client may request a range up to the end and close the connection when it has the bytes that it needs, as
        containerd 2.1 does with `concurrent_layer_fetch_buffer`.  So a closed connection is no failure for a range.
        Nor is it one when all bytes were sent: a client may close the connection as soon as it has the last.
        """
        if self._request.sentLength == answer.length:
            self._write_line(answer.status, reason="the client closed the connection at the end of the answer")
        elif answer.status == PARTIAL_CONTENT:
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
