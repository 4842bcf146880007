"""Rules by which pushed tags are not kept for ever (`--retain`)."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from attrs import frozen
from twisted.python import usage

_RULE = re.compile(r"([1-9][0-9]{0,8})([hdw]?)")
_SECONDS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


@frozen
class RetainRule:
    """Of the tags that fit `pattern`, keep the `newest` of each repository, or those used within the last `seconds`.

    A use is a push or a pull.  Exactly one of `newest` and `seconds` is set; the other is 0.  `text` is the rule as
    the user gave it.
    """

    text: str
    pattern: str
    newest: int = 0
    seconds: float = 0.0

    def fits(self, repository: str, tag: str) -> bool:
        """Return whether the pattern, one of a shell, matches the repository, the tag, or `repository:tag`."""
        return any(fnmatchcase(name, self.pattern) for name in (repository, tag, f"{repository}:{tag}"))


def parse_rule(text: str) -> RetainRule:
    """Return the rule in `PATTERN=RULE`, such as `tilt-*=20` or `*-dev=14d`.  Raises `usage.UsageError`."""
    pattern, equals, rule = text.rpartition("=")
    match = _RULE.fullmatch(rule)
    if not equals or not pattern or match is None or any(character.isspace() for character in pattern):
        raise usage.UsageError(
            f"--retain {text!r} is not PATTERN=RULE; a rule is a number of tags, or of hours, days or weeks: "
            "'tilt-*=20', '*-dev=14d'"
        )
    if ":" in pattern.rpartition("/")[0]:
        raise usage.UsageError(f"--retain {text!r}: leave out the registry's host and port")
    number, unit = int(match[1]), match[2]
    return RetainRule(text, pattern, seconds=number * _SECONDS[unit]) if unit else RetainRule(text, pattern, number)
