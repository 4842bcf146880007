"""For all tests: which k3dreg is tested, and where `tests.…` is imported from."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# At the end, so that an installed k3dreg comes before the source tree: tox tests the wheel that it built.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


def pytest_report_header(config: pytest.Config) -> str:
    import k3dreg

    return f"k3dreg under test: {Path(k3dreg.__file__).parent}"


def pytest_configure(config: pytest.Config) -> None:
    """With K3DREG_TEST_INSTALLED=1 the tests run against what is installed, or not at all."""
    import k3dreg

    if os.environ.get("K3DREG_TEST_INSTALLED") == "1" and Path(k3dreg.__file__).is_relative_to(ROOT / "k3dreg"):
        raise pytest.UsageError(f"the tests would import {k3dreg.__file__}, not the installed package")


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trial's `mktemp` makes its directories where the process is."""
    monkeypatch.chdir(tmp_path)
