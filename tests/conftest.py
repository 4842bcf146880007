"""For all tests: which k3dreg is tested, where `tests.…` is imported from, how many processes run, what is skipped."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
# At the end, so that an installed k3dreg comes before the source tree: tox tests the wheel that it built.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

# No test fails because of a time, which says more about the machine than about the code.
hypothesis.settings.register_profile("k3dreg", deadline=None)
hypothesis.settings.load_profile("k3dreg")


def pytest_report_header(config: pytest.Config) -> str:
    import k3dreg

    return f"k3dreg under test: {Path(k3dreg.__file__).parent}"


def pytest_configure(config: pytest.Config) -> None:
    """With K3DREG_TEST_INSTALLED=1 the tests run against what is installed, or not at all."""
    import k3dreg

    if os.environ.get("K3DREG_TEST_INSTALLED") == "1" and Path(k3dreg.__file__).is_relative_to(ROOT / "k3dreg"):
        raise pytest.UsageError(f"the tests would import {k3dreg.__file__}, not the installed package")


# Where one of these is set, there are engines for the integration tests.
ENGINES = ("K3DREG_TEST_ENGINE", "K3DREG_TEST_ENGINES", "K3DREG_TEST_SPARES", "K3DREG_TEST_PODMAN")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return how many processes `-n auto` of pyproject.toml means; None leaves it to pytest-xdist: one for each core.

    None but this one for a person's own Docker, whose contents are compared before and after, and for single files,
    which is sooner done.  Four where there are other engines: one has an engine to itself, and mostly waits for it.
    """
    paths = [Path(argument.partition("::")[0]) for argument in config.args]
    few = len(paths) < 4 and all(path.suffix == ".py" for path in paths)
    if few or os.environ.get("K3DREG_TEST_ENGINE"):
        return 0
    return 4 if any(os.environ.get(name) for name in ENGINES) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once for each reason how many tests were skipped; without any engine, all integration tests have the same."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        if "tests/integration/" in report.nodeid and not any(os.environ.get(name) for name in ENGINES):
            reasons["integration tests, which need Docker or other programs: see CONTRIBUTING.md"] += 1
        else:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reasons[reason.removeprefix("Skipped: ")] += 1
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trial's `mktemp` makes its directories where the process is."""
    monkeypatch.chdir(tmp_path)
