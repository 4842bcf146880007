"""Add k3dreg to a `registries.yaml` of k3s, and remove it again, without a YAML library.

Every line that `add_endpoint` adds ends with `MARK`.  A line that it replaces becomes a comment that begins with
`INSTEAD_OF`.  So `remove_endpoint` restores the file byte for byte, and keeps what the user changes around these lines.

Only block mappings in the form that people and k3d write are changed.  A file in any other form is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import frozen

from k3dreg.attaching.attaching_errors import CannotAttach
from k3dreg.attaching.hosts_file import MARK

INSTEAD_OF = "# k3dreg attach, instead of: "
# A key with its value, and a comment: `  docker.io:  # mine`.  Keys with escapes, and merge keys, do not match.
_KEY = re.compile(
    r"""(?P<indent>\ *)(?P<key>"[^"\\]*"|'[^']*'|[A-Za-z0-9_][^\s#"'{}\[\],&*!|>%@`]*):(?:\ +(?P<value>[^\s#].*?))?"""
    r"""(?:\ +\#.*)?\ *""",
    re.VERBOSE,
)
# A string without escapes, in quotes or without.
_STRING = r"""(?:"[^"\\]*"|'[^']*'|[^\s"'#&*!|>%@`{}\[\],]+)"""
_ITEM = re.compile(rf"(?P<indent> *)- +(?P<value>{_STRING})(?: +#.*)? *")
# A list in one line: `["https://a", https://b]`.
_FLOW = re.compile(rf"\[ *({_STRING}(?: *, *{_STRING})*)? *\]")
_EMPTY = ("", "{}", "[]", "~", "null")


@frozen
class _Entry:
    """A key of a block mapping: the number of its line, the number of the line after its value, and both texts."""

    line: int
    end: int
    key: str
    value: str


def add_endpoint(text: str, url: str) -> str:
    """Return the file with `url` as the first endpoint of the mirror `"*"`.  Raises `CannotAttach`.

    A file in which it is that already, by other means than this function, is returned unchanged.
    """
    lines = _restored(text)
    _check(lines)
    mirrors = _find(lines, 0, len(lines), 0, "mirrors")
    if mirrors is None:
        at = len(lines) - 1 if lines[-1] == "" else len(lines)
        return _joined(lines, at, at, _marked(0, "mirrors:", '"*":', "endpoint:", f"- {url}"))
    indent = _indent(lines, mirrors.line + 1, mirrors.end)
    step = indent or 2
    if not indent or mirrors.value:
        return _filled(lines, mirrors, 0, _marked(2, '"*":', "endpoint:", f"- {url}"))
    every = _find(lines, mirrors.line + 1, mirrors.end, indent, "*")
    if every is None:
        at = mirrors.line + 1
        return _joined(lines, at, at, _marked(indent, '"*":', "endpoint:", f"- {url}", step=step))
    inner = _indent(lines, every.line + 1, every.end)
    if not inner or every.value:
        return _filled(lines, every, indent, _marked(indent + step, "endpoint:", f"- {url}", step=step))
    endpoint = _find(lines, every.line + 1, every.end, inner, "endpoint")
    if endpoint is None:
        at = every.line + 1
        return _joined(lines, at, at, _marked(inner, "endpoint:", f"- {url}", step=step))
    return _with_endpoint(lines, endpoint, inner, url)


def remove_endpoint(text: str) -> str:
    """Return the file without what `add_endpoint` added, "" if nothing is left."""
    left = "\n".join(_restored(text))
    return left if left.strip() else ""


def marked_endpoints(text: str) -> tuple[str, ...]:
    """Return the URLs that `add_endpoint` added."""
    marked = [line.rstrip().removesuffix(MARK) for line in text.split("\n") if line.rstrip().endswith(MARK)]
    found = re.findall(r"""(?:- |\[")(https?://[^\s"]+)""", "\n".join(marked))
    return tuple(dict.fromkeys(found))


def mirrored_hosts(text: str) -> tuple[str, ...]:
    """Return the registries with a mirror of their own, whose images nodes do not ask the mirror `"*"` for.

    Raises `CannotAttach`.
    """
    lines = _restored(text)
    _check(lines)
    mirrors = _find(lines, 0, len(lines), 0, "mirrors")
    if mirrors is None or mirrors.value:
        return ()
    indent = _indent(lines, mirrors.line + 1, mirrors.end)
    return tuple(each.key for each in _entries(lines, mirrors.line + 1, mirrors.end, indent) if each.key != "*")


def _with_endpoint(lines: Sequence[str], endpoint: _Entry, indent: int, url: str) -> str:
    """Return the file with `url` as the first of the endpoints in a list, in several lines or in one."""
    if endpoint.value in _EMPTY and not any(map(_says, lines[endpoint.line + 1 : endpoint.end])):
        return _filled(lines, endpoint, indent, _marked(indent + 2, f"- {url}"))
    if endpoint.value:
        match = _FLOW.fullmatch(endpoint.value)
        if match is None or any(map(_says, lines[endpoint.line + 1 : endpoint.end])):
            raise _odd(endpoint.line, lines)
        if match[1].split(",")[0].strip(" \"'") == url:
            return "\n".join(lines)
        made = f'{" " * indent}endpoint: ["{url}", {match[1]}] {MARK}'
        return _joined(lines, endpoint.line, endpoint.line + 1, [INSTEAD_OF + lines[endpoint.line], made])
    numbers = [number for number in range(endpoint.line + 1, endpoint.end) if _says(lines[number])]
    items = [_ITEM.fullmatch(lines[number].rstrip("\r")) for number in numbers]
    first = items[0]
    if first is None or len({item and item["indent"] for item in items}) != 1:
        raise _odd(numbers[0], lines)
    if first["value"].strip("\"'") == url:
        return "\n".join(lines)
    return _joined(lines, numbers[0], numbers[0], [f"{first['indent']}- {url} {MARK}"])


def _filled(lines: Sequence[str], entry: _Entry, indent: int, added: Sequence[str]) -> str:
    """Return the file with `added` as the value of a key that has none, or an empty one such as `{}`."""
    if entry.value not in _EMPTY or any(map(_says, lines[entry.line + 1 : entry.end])):
        raise _odd(entry.line, lines)
    if not entry.value:
        return _joined(lines, entry.line + 1, entry.line + 1, added)
    key = f"{' ' * indent}{lines[entry.line].strip().partition(':')[0]}: {MARK}"
    return _joined(lines, entry.line, entry.line + 1, [INSTEAD_OF + lines[entry.line], key, *added])


def _entries(lines: Sequence[str], begin: int, end: int, indent: int) -> Sequence[_Entry]:
    """Return the keys with this indentation.  Raises `CannotAttach` for a line with it, or with less, that is no key.

    An item of a list may have the indentation of the list's key.
    """
    found: list[tuple[int, str, str]] = []
    for number in range(begin, end):
        line = lines[number].rstrip("\r")
        depth = len(line) - len(line.lstrip(" "))
        if not _says(line) or (depth > indent and found):
            continue
        match = _KEY.fullmatch(line)
        if match is not None and depth == indent:
            found.append((number, match["key"].strip("\"'"), match["value"] or ""))
        elif not (found and depth == indent and not found[-1][2] and line.lstrip(" ").startswith("- ")):
            raise _odd(number, lines)
    ends = [number for number, _, _ in found[1:]] + [end]
    return [_Entry(number, last, key, value) for (number, key, value), last in zip(found, ends, strict=False)]


def _find(lines: Sequence[str], begin: int, end: int, indent: int, key: str) -> _Entry | None:
    found = [entry for entry in _entries(lines, begin, end, indent) if entry.key == key]
    if len(found) > 1:
        raise _odd(found[1].line, lines)
    return found[0] if found else None


def _indent(lines: Sequence[str], begin: int, end: int) -> int:
    """Return the indentation of the first line that says something; 0 if there is none."""
    first = next((line for line in lines[begin:end] if _says(line)), "")
    return len(first) - len(first.lstrip(" "))


def _check(lines: Sequence[str]) -> None:
    """Raise `CannotAttach` for several documents, and for tabs, which YAML does not allow as indentation."""
    said = [number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    for number in said:
        line = lines[number]
        is_mark = line.startswith(("---", "...", "%"))
        if "\t" in line or (is_mark and not (number == said[0] and line.rstrip() == "---")):
            raise _odd(number, lines)


def _says(line: str) -> bool:
    """Return whether a line is neither empty nor a comment, nor the mark before the document."""
    text = line.strip()
    return bool(text) and not text.startswith("#") and line.rstrip() != "---"


def _marked(indent: int, *texts: str, step: int = 2) -> list[str]:
    """Return lines of which each is indented by `step` more than the one before."""
    return [f"{' ' * (indent + number * step)}{text} {MARK}" for number, text in enumerate(texts)]


def _joined(lines: Sequence[str], begin: int, end: int, added: Sequence[str]) -> str:
    return "\n".join([*lines[:begin], *added, *lines[end:]])


def _restored(text: str) -> list[str]:
    """Return the lines as they were before `add_endpoint`."""
    lines = [line for line in text.split("\n") if not line.rstrip().endswith(MARK)]
    return [line.removeprefix(INSTEAD_OF) for line in lines]


def _odd(number: int, lines: Sequence[str]) -> CannotAttach:
    return CannotAttach(f"registries.yaml has a line that k3dreg cannot change safely: {lines[number].strip()[:100]!r}")
