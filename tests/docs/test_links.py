"""Links between the pages of the repository: the file is there, and so is the heading."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(page for pattern in ("*.md", "[!.]*/*.md", "examples/*/*.md") for page in ROOT.glob(pattern))
_FENCED = re.compile(r"^( *)(```|~~~).*?^ *\2", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
# `[text](target "title")`, `[name]: target`, and the attributes of HTML.
_LINKS = re.compile(r'\]\(\s*<?([^)\s>]+)|^ {0,3}\[[^\]]+\]:\s+<?([^\s>]+)|(?:href|src)="([^"]+)"', re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} +(.+?)[ #]*$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: dict[str, int] = {}
    result = set()
    for heading in _HEADING.findall(_FENCED.sub("", text)):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        result.add(f"{slug}-{count}" if count else slug)
    return result


def broken(page: Path, root: Path) -> list[str]:
    """Return the relative links of `page` that lead to no file below `root`, or to no heading."""
    text = _CODE.sub("", _FENCED.sub("", page.read_text()))
    wrong = []
    for link in ("".join(groups) for groups in _LINKS.findall(text)):
        if re.match(r"[a-z][a-z0-9+.-]*:|//", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(root) or not target.exists():
            wrong.append(f"{link}: there is no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text()):
            wrong.append(f"{link}: there is no such heading")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert not broken(page, ROOT)


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One `Two`, three\n\n## Again\n## Again\n```\n# not a heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#one-two-three) [b](other.md#again-1) [c](other.md) [d](https://example.com/#x) `[e](none.md)`\n"
        "[f](other.md#not-a-heading) [g](none.md) ![h](none.png)\n\n[i]: #nowhere\n"
    )
    assert [line.partition(":")[0] for line in broken(page, tmp_path)] == [
        "other.md#not-a-heading",
        "none.md",
        "none.png",
        "#nowhere",
    ]
