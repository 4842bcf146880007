"""One line per request, for people.

    172.18.0.3 HEAD docker.io/library/nginx:1.27 200 export, after: pull 12.1s, 0 bytes, 14.203s
    172.18.0.3 GET docker.io/library/nginx blob sha256:31968c0f9eaf 200 cache, 7432011 bytes, 0.041s
    172.18.0.3 HEAD docker.io/library/nginy:1 404, 0 bytes, 0.310s: Docker cannot pull it: manifest unknown

Nothing that a client or an engine said gets into the log as it is: names are parsed before they are written, and
what is not printable is escaped.  The `Authorization` header is never looked at here.
"""

from __future__ import annotations

from attrs import define, field

from k3dreg.log import make_logger
from k3dreg.model.trace import Trace
from k3dreg.protocol.routes import (
    Base,
    BlobRoute,
    CatalogRoute,
    ManifestRoute,
    ReferrersRoute,
    Route,
    TagsRoute,
)

log = make_logger()

# nginx's number for it: the client closed the connection before it had its answer.
CLIENT_GONE = 499
# A reason may quote an engine that quotes a proxy's error page.
_LONGEST_REASON = 1000


@define
class Record:
    """What the line of one request says.

    `subject` is what was asked for, as `name_of` or `quoted` gives it; `sent` counts bytes of the body.
    """

    client: str
    method: str
    subject: str
    quiet: bool = False
    trace: Trace = field(factory=Trace)

    def write(self, status: int, sent: int, seconds: float, reason: str = "", aborted: bool = False) -> None:
        """Write the line.

        A failure of k3dreg or of what is behind it is a warning; a quiet one that succeeds is for `debug`.
        `aborted`: the connection was closed in the middle of the body.
        """
        said = f"{self.client} {self.method} {self.subject} {status}"
        if self.trace.source:
            said += f" {self.trace.source}"
        if self.trace.steps:
            said += f", after: {', '.join(self.trace.steps)}"
        said += f", {'aborted after ' if aborted else ''}{sent} bytes, {seconds:.3f}s"
        reason = reason or self.trace.reason
        if reason:
            said += f": {reason[:_LONGEST_REASON]}"
        line = printable(said)
        if aborted or status >= 500:
            log.warn("{line}", line=line)
        elif self.quiet and status < 400:
            log.debug("{line}", line=line)
        else:
            log.info("{line}", line=line)


def name_of(route: Route) -> str:
    """What a route asks for, as a person writes it."""
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


def quoted(text: bytes) -> str:
    """Something that did not parse, in quotes and with everything odd in it escaped."""
    return ascii(text[:200].decode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """`text` with whatever could end a line, move a cursor or hide something written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
