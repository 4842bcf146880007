"""One line per request, for users.

    172.18.0.3 HEAD docker.io/library/nginx:1.27 200 export, after: pull 12.1s, 0 bytes, 14.203s
    172.18.0.3 GET docker.io/library/nginx blob sha256:31968c0f9eaf 200 cache, 7432011 bytes, 0.041s
    172.18.0.3 HEAD docker.io/library/nginx:9 404, 0 bytes, 0.310s: manifest for nginx:9 not found: manifest unknown

Text from a client or an engine is not logged as it is: names are parsed before they are written, and characters that
are not printable are escaped.  The `Authorization` header is not used here.

Each line ends with the request's ID in brackets, which the client gets as `X-Request-Id` and in the detail of an error,
and with the ID of the client's trace if it sent one.
"""

from __future__ import annotations

import secrets

from attrs import define, field

from k3dreg.oci.routes import Base, BlobRoute, CatalogRoute, ManifestRoute, ReferrersRoute, Route, TagsRoute
from k3dreg.reporting.activity import RequestReport
from k3dreg.reporting.logger import make_logger
from k3dreg.reporting.observer import NULL_OBSERVER, IObserver
from k3dreg.reporting.trace import Trace

log = make_logger()

# The status that nginx logs when the client closed the connection before it got its answer.
CLIENT_GONE = 499
# Characters.  A reason may contain the text of an engine's error, and that a proxy's error page.
_LONGEST_REASON = 1000
# Bytes of a request's ID.  A fixed number, so that the Content-Length of an error is the same for HEAD and GET.
_ID_BYTES = 8


def _new_id() -> str:
    return secrets.token_hex(_ID_BYTES)


@define
class Record:
    """What is logged of one request.  Call `write` once, at the end of the request.

    `subject` is what the client requests, from `name_of` or `quoted`, and `route` its kind, from `kind_of`.  `quiet`
    requests are logged at `debug` if they succeed.  `trace_id` is the ID of the client's trace, "" for none.
    """

    client: str
    method: str
    subject: str
    quiet: bool = False
    trace: Trace = field(factory=Trace)
    route: str = "invalid"
    trace_id: str = ""
    observer: IObserver = NULL_OBSERVER
    id: str = field(factory=_new_id)

    def write(
        self,
        status: int,
        sent: int,
        seconds: float,
        reason: str = "",
        aborted: bool = False,
        *,
        at: float = 0.0,
        head_seconds: float = 0.0,
        refusal: str = "",
    ) -> None:
        """Write the line, and report the request to the observer.

        `sent` is the number of bytes of the body that were sent.  `aborted`: k3dreg closed the connection in the middle
        of the body.  An aborted answer and a 5xx are warnings.  The arguments after `aborted` are for the observer: see
        `RequestReport`.
        """
        said = f"{self.client} {self.method} {self.subject} {status}"
        if self.trace.source:
            said += f" {self.trace.source}"
        if self.trace.steps:
            said += f", after: {', '.join(self.trace.steps)}"
        said += f", {'aborted after ' if aborted else ''}{sent} bytes, {seconds:.3f}s"
        reason = (reason or self.trace.reason)[:_LONGEST_REASON]
        if reason:
            said += f": {reason}"
        said += f" [{self.id} trace {self.trace_id}]" if self.trace_id else f" [{self.id}]"
        report = RequestReport(
            id=self.id,
            at=at,
            client=self.client,
            method=self.method,
            route=self.route,
            subject=self.subject,
            status=status,
            sent=sent,
            seconds=seconds,
            head_seconds=head_seconds,
            source=self.trace.source,
            steps=tuple(self.trace.steps),
            reason=reason,
            refusal=refusal,
            aborted=aborted,
            quiet=self.quiet,
            trace_id=self.trace_id,
            manifest=self.trace.manifest,
            contents=self.trace.contents,
            linked=self.trace.linked,
            not_linked=self.trace.not_linked,
        )
        line = printable(said)
        # The fields of the report are for `json_log`.
        if aborted or status >= 500:
            log.warn("{line}", line=line, report=report)
        elif self.quiet and status < 400:
            log.debug("{line}", line=line, report=report)
        else:
            log.info("{line}", line=line, report=report)
        self.observer.answered(report)


def name_of(route: Route) -> str:
    """Return what a route requests, for the log."""
    match route:
        case Base():
            return "/v2/"
        case CatalogRoute():
            return "/v2/_catalog"
        case ManifestRoute(reference):
            return str(reference)
        case BlobRoute(repository, digest):
            return f"{repository} blob {digest.algorithm}:{digest.short}"
        case TagsRoute(repository):
            return f"{repository} tags"
        case ReferrersRoute(repository, digest):
            return f"{repository} referrers of {digest.algorithm}:{digest.short}"
    return f"{route.repository} upload"


def kind_of(route: Route) -> str:
    """Return the kind of a route, one word of a fixed list, for the metrics."""
    match route:
        case Base():
            return "base"
        case CatalogRoute():
            return "catalog"
        case ManifestRoute():
            return "manifest"
        case BlobRoute():
            return "blob"
        case TagsRoute():
            return "tags"
        case ReferrersRoute():
            return "referrers"
    return "upload"


def quoted(text: bytes) -> str:
    """Return text that could not be parsed, in quotes and with all characters but printable ASCII escaped."""
    return ascii(text[:200].decode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """Return `text` with all characters escaped that could end a line, move the cursor or hide text."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
