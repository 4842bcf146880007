"""The errors with which Twisted's HTTP clients report that a request got no answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from twisted.internet import error as net
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from twisted.web.client import RequestGenerationFailed, RequestTransmissionFailed, ResponseFailed, ResponseNeverReceived

CONNECTION_ERRORS: tuple[type[Exception], ...] = (
    net.ConnectError,
    net.ConnectingCancelledError,
    net.ConnectionClosed,
    net.DNSLookupError,  # not a subclass of `ConnectError`
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)


def was_cancelled(error: BaseException) -> bool:
    """Return whether a request failed because its caller cancelled it."""
    return any(isinstance(cause, CancelledError | net.ConnectingCancelledError) for cause in causes(error))


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors that it was made of (`reasons` of Twisted Web's exceptions)."""
    yield error
    reasons: Sequence[Failure] = getattr(error, "reasons", ())
    for reason in reasons:
        if reason.value is not None:
            yield from causes(reason.value)
