"""Parse `WWW-Authenticate`, in which a server says how a client may authenticate (RFC 9110, 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import field, frozen

# Tokens and quoted strings: RFC 9110, 5.6.2 and 5.6.4.  token68: 11.2.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  (a grammar)
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PARAMETER = re.compile(rf"\s*({_TOKEN})\s*=\s*({_QUOTED}|{_TOKEN})\s*(?=,|$)")
_SCHEME = re.compile(rf"\s*({_TOKEN})(?:\s+|(?=,)|$)")
_TOKEN68 = re.compile(r"\s*([A-Za-z0-9._~+/-]+=*)\s*(?=,|$)")
# Characters of a header.  A scope of many repositories is long, but no real header comes near this.
_LONGEST = 16 * 1024


@frozen
class Challenge:
    """A way to authenticate that a server offers.  `scheme` and the names in `parameters` are in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(factory=dict, hash=False)


def parse_challenges(*values: str) -> list[Challenge]:
    """Return the challenges in the values of one or more headers, in order.

    A syntax error ends the parsing of its header; the challenges before it are still returned.
    """
    return [challenge for value in values if len(value) <= _LONGEST for challenge in _parse(value)]


def _parse(value: str) -> list[Challenge]:
    found: list[Challenge] = []
    position = 0
    while position < len(value):
        if value[position] in ", \t":
            position += 1
            continue
        match = _SCHEME.match(value, position)
        if match is None or value[match.end() : match.end() + 1] == "=":
            break
        scheme, position = match[1].lower(), match.end()
        parameters: dict[str, str] = {}
        opaque = _TOKEN68.match(value, position)
        if opaque is not None and _PARAMETER.match(value, position) is None:
            position = opaque.end()
        else:
            while (parameter := _PARAMETER.match(value, position)) is not None:
                parameters.setdefault(parameter[1].lower(), _unquoted(parameter[2]))
                position = parameter.end()
                if value[position : position + 1] == ",":
                    # A comma separates parameters as well as challenges.
                    if _PARAMETER.match(value, position + 1) is None:
                        break
                    position += 1
        found.append(Challenge(scheme, parameters))
        if value[position : position + 1] not in ("", ","):
            break
    return found


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text
