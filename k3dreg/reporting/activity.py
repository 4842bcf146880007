"""What k3dreg is doing, and what it has done, as values for whoever watches it."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, frozen

from k3dreg.oci.descriptor import Descriptor


@frozen
class Progress:
    """How far something is, in bytes.  `total` is 0 where it is not known, and may turn out to be too small."""

    done: int = 0
    total: int = 0


def _nothing() -> Progress:
    return Progress()


def _nobody() -> int:
    return 0


@define(eq=False)
class Activity:
    """Something that takes a while: one object from its beginning to its end.

    `kind` is one of `KINDS`; `subject` what it is about, as a person writes it; `began` is in seconds since the epoch.
    `progress` and `waiters` (how many wait for its end) are asked when somebody looks.
    """

    kind: str
    subject: str
    began: float
    progress: Callable[[], Progress] = _nothing
    waiters: Callable[[], int] = _nobody
    request_id: str = ""


KINDS = ("pull", "export", "transfer")


@frozen
class RequestReport:
    """A request that has ended.

    `at` is when, in seconds since the epoch; `seconds` how long it took, and `head_seconds` how long until its
    status and headers were written; `sent` counts bytes of the body.  `route` is one of a few words, `source` and
    `steps` are those of the request's `Trace`.  `refusal` is the class of the error it was answered with, or broken
    off for, "" for none; `reason` says why in a sentence.  `trace_id` is the client's (W3C Trace Context), or "".
    `manifest` is the manifest that a request was answered with, None for other requests.
    """

    id: str
    at: float
    client: str
    method: str
    route: str
    subject: str
    status: int
    sent: int
    seconds: float
    head_seconds: float
    source: str = ""
    steps: tuple[str, ...] = ()
    reason: str = ""
    refusal: str = ""
    aborted: bool = False
    quiet: bool = False
    trace_id: str = ""
    manifest: Descriptor | None = None
