"""What CONTRIBUTING.md tells a newcomer to type is there."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_environment_of_tox_exists() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    named = {name for names in re.findall(r"tox -e ([a-z,]+)", TEXT) for name in names.split(",")}
    assert named
    assert {f"testenv:{name}" for name in named} <= set(tox.sections())


def test_every_path_exists() -> None:
    paths = re.findall(r"(?<![\w/])((?:tests|docs|bench|\.ci)/[\w./-]*\w)", TEXT)
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_environment_variable_is_one_that_the_tests_read() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    assert not [name for name in re.findall(r"K3DREG_TEST_\w+", TEXT) if name not in sources]
