"""The log as JSON: one object per line, for programs (`--log-format json`).

Fields of every object, always there: `time` (RFC 3339, UTC), `level` ("debug", "info", "warn", "error",
"critical"), `logger` (the module), `message` (the line that people would read).  `traceback`: of an error that nobody
foresaw.  For a request that has ended, `event` is "request" and there are all of `request_id`, `client`, `method`,
`route`, `subject`, `status`, `source`, `steps` (a list), `bytes`, `seconds`, `head_seconds`, `reason`, `refusal` (a
class of k3dreg.oci.errors, or ""), `aborted` and `trace_id`.
Fields may be added; these keep their names and meaning.
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


@implementer(ILogObserver)
class JsonObserver:
    """Writes events to `out`, which has to be the real one: Twisted puts a logger in the place of `sys.stdout`."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, event: LogEvent) -> None:
        """One event, one line."""
        self._out.write(json.dumps(fields_of(event)) + "\n")
        self._out.flush()


def json_observer() -> JsonObserver:
    """An observer that writes to standard output; also for `twistd --logger k3dreg.daemon.json_log.json_observer`."""
    return JsonObserver(sys.stdout)


def fields_of(event: LogEvent) -> dict[str, Any]:
    """The object for an event of twisted.logger."""
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
    failure = event.get("log_failure")
    if isinstance(failure, Failure):
        fields["traceback"] = failure.getTraceback()
    return fields
