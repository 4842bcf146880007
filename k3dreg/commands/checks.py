"""The result of a check of `k3dreg doctor`, and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Sequence

from attrs import asdict, frozen

from k3dreg import __version__

OK, WARN, FAIL = "ok", "warn", "fail"


@frozen
class Check:
    """The name of a check, its verdict (`OK`, `WARN` or `FAIL`), what it found, and what the user can do, or ""."""

    name: str
    verdict: str
    says: str
    advice: str = ""


def status_of(checks: Sequence[Check]) -> int:
    """Return the exit status: 1 if a check failed, else 0."""
    return int(any(check.verdict == FAIL for check in checks))


def as_text(checks: Sequence[Check]) -> str:
    """Return the checks as lines for users."""
    lines = []
    for check in checks:
        lines.append(f"{check.verdict:5} {check.name}: {check.says}")
        if check.advice:
            lines.append(f"      {check.advice}")
    return "\n".join(lines)


def as_json(checks: Sequence[Check]) -> str:
    """Return the checks as one JSON object, for programs."""
    return json.dumps(
        {"version": __version__, "ok": not status_of(checks), "checks": [asdict(check) for check in checks]}
    )
