"""Rules by which tags follow their registries (`--refresh`)."""

from __future__ import annotations

import re

from attrs import frozen
from twisted.python import usage

_AGE = re.compile(r"([1-9][0-9]{0,8})([smhdw])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_DEFAULT_AGE = "1h"


@frozen
class RefreshRule:
    """A pattern of names of images, and the seconds for which their registry's last answer counts."""

    pattern: str
    age: float


def parse_rule(text: str) -> RefreshRule:
    """Return the rule in `PATTERN[=AGE]`, such as `nginx:*` or `team/*=15m`.  Raises `usage.UsageError`."""
    pattern, equals, age = text.partition("=")
    match = _AGE.fullmatch(age if equals else _DEFAULT_AGE)
    if not pattern or match is None or any(character.isspace() for character in pattern):
        raise usage.UsageError(
            f"--refresh {text!r} is not PATTERN or PATTERN=AGE; an age is a number of seconds, minutes, hours, days or "
            "weeks: 'nginx:*', 'team/*=15m', 'redis=7d'"
        )
    return RefreshRule(pattern, int(match[1]) * _SECONDS[match[2]])
