"""docs/configuration.md has every option, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from k3dreg.config.options import Options

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
# What every program has.
_COMMON = {"--help", "--version"}


def test_the_page_has_every_option_and_no_other() -> None:
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `--")]
    documented = set(re.findall(r"--[a-z-]+", " ".join(rows)))
    options = {f"--{name.rstrip('=')}" for name in Options().longOpt}
    assert documented == options - _COMMON
