"""What a check of `k3dreg doctor` says, and how all of them are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence

from attrs import asdict, frozen

from k3dreg import __version__

OK, WARN, FAIL = "ok", "warn", "fail"


@frozen
class Check:
    """What was looked at, the verdict (`OK`, `WARN`, `FAIL`), what was seen, and what to do; "" for nothing."""

    name: str
    verdict: str
    says: str
    advice: str = ""


def status_of(checks: Sequence[Check]) -> int:
    """The exit status: 1 if anything failed."""
    return int(any(check.verdict == FAIL for check in checks))


def as_text(checks: Sequence[Check]) -> str:
    """Lines for people."""
    lines = []
    for check in checks:
        lines.append(f"{check.verdict:5} {check.name}: {check.says}")
        if check.advice:
            lines.append(f"      {check.advice}")
    return "\n".join(lines)


def as_json(checks: Sequence[Check]) -> str:
    """Return one object, for programs."""
    return json.dumps(
        {"version": __version__, "ok": not status_of(checks), "checks": [asdict(check) for check in checks]}
    )
