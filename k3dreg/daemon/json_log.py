"""The log as JSON: one object per line, for programs (`--log-format json`).

Every object has the fields `time` (RFC 3339, UTC), `level` ("debug", "info", "warn", "error" or "critical"), `logger`
(the module) and `message` (the text of the line).  An unexpected error has a `traceback`.

For a request that has ended, `event` is "request", and the object also has `request_id`, `client`, `method`, `route`,
`subject`, `status`, `source`, `steps` (a list), `bytes`, `seconds`, `head_seconds`, `reason`, `refusal` (a class name
of `k3dreg.oci.errors`, "Cancelled", "Unexpected", or ""), `aborted` and `trace_id`.

For a pull that is over, `event` is "pull", and the object also has `image`, `client`, `node`, `way`, `layers_linked`,
`layers_sent`, `layers_there`, `bytes`, `seconds`, `status`, `reason`, `not_linked` and `request_ids` (a list).

Versions of k3dreg may add fields; these keep their names and meanings.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from twisted.logger import ILogObserver, LogEvent, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from k3dreg.reporting.activity import RequestReport
from k3dreg.status.overview import SeenPull


@implementer(ILogObserver)
class JsonObserver:
    """Writes each event to `out` as a line.

    `out` must be the original standard output, as Twisted replaces `sys.stdout` by a logger.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, event: LogEvent) -> None:
        """Write one event as one line."""
        self._out.write(json.dumps(fields_of(event)) + "\n")
        self._out.flush()


def json_observer() -> JsonObserver:
    """Return an observer that writes to standard output, as `twistd --logger` requires it."""
    return JsonObserver(sys.stdout)


def fields_of(event: LogEvent) -> dict[str, Any]:
    """Return the JSON object for an event of `twisted.logger`."""
    level = event.get("log_level")
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(event.get("log_time", 0.0), UTC).isoformat(timespec="milliseconds"),
        "level": getattr(level, "name", "info"),
        "logger": str(event.get("log_namespace") or "-"),
        "message": formatEvent(event),
    }
    report = event.get("report")
    if isinstance(report, RequestReport):
        fields |= {
            "event": "request",
            "request_id": report.id,
            "client": report.client,
            "method": report.method,
            "route": report.route,
            "subject": report.subject,
            "status": report.status,
            "source": report.source,
            "steps": list(report.steps),
            "bytes": report.sent,
            "seconds": round(report.seconds, 6),
            "head_seconds": round(report.head_seconds, 6),
            "reason": report.reason,
            "refusal": report.refusal,
            "aborted": report.aborted,
            "trace_id": report.trace_id,
        }
    pull = event.get("pull")
    if isinstance(pull, SeenPull):
        fields |= {
            "event": "pull",
            "image": pull.image,
            "client": pull.client,
            "node": pull.node,
            "way": pull.way,
            "layers_linked": pull.linked,
            "layers_sent": pull.sent,
            "layers_there": pull.there,
            "bytes": pull.sent_bytes,
            "seconds": round(pull.seconds, 6),
            "status": pull.status,
            "reason": pull.reason,
            "not_linked": pull.not_linked,
            "request_ids": [each.id for each in pull.requests],
        }
    failure = event.get("log_failure")
    if isinstance(failure, Failure):
        fields["traceback"] = failure.getTraceback()
    return fields
