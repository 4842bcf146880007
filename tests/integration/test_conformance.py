"""The conformance suites of the OCI Distribution Specification, as their makers publish them, against a daemon.

Their reports are kept in `.ci/reports`.  What the specification says and no suite tries is in
`test_beyond_conformance.py`.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.integration.support import rig
from tests.integration.support.daemon import Daemon, running

REPORTS = rig.REPOSITORY / ".ci/reports"
NO_ENGINE = rig.EngineAddress("none", "unix:///nonexistent/docker.sock")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon without an engine."""
    with running(NO_ENGINE, tmp_path) as daemon:
        yield daemon


def outcomes(program: str, directory: Path, settings: Mapping[str, str]) -> tuple[int, str, Counter[str]]:
    """Run the suite; return its status, what it printed, and how many of its tests passed, failed and were skipped."""
    directory.mkdir(parents=True, exist_ok=True)
    for report in directory.iterdir():
        report.unlink()
    done = subprocess.run(
        [rig.program(program)],
        env=dict(settings),
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        text=True,
        check=False,
    )
    counted: Counter[str] = Counter()
    for case in ElementTree.parse(directory / "junit.xml").iter("testcase"):
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        counted[kinds.pop() if kinds else "passed"] += 1
    return done.returncode, done.stdout, counted


def test_the_suite_of_version_1_1(alone: Daemon) -> None:
    directory = REPORTS / "conformance-1.1"
    settings = {
        "OCI_ROOT_URL": f"http://{alone.host}",
        "OCI_NAMESPACE": "conformance/one",
        "OCI_CROSSMOUNT_NAMESPACE": "conformance/two",
        "OCI_REPORT_DIR": str(directory),
        **{f"OCI_TEST_{category}": "1" for category in ("PULL", "PUSH", "CONTENT_DISCOVERY", "CONTENT_MANAGEMENT")},
    }
    status, printed, counted = outcomes("conformance-1.1.test", directory, settings)
    assert status == 0, printed[-5000:]
    # The suite skips what another way of asking makes needless: 5 of its cases.
    assert counted == {"passed": 75, "skipped": 5}
    alone.check_log()


def check_next_version(daemon: Daemon, name: str, passed: int, **more: str) -> None:
    directory = REPORTS / name
    settings = {
        "OCI_REGISTRY": daemon.host,
        "OCI_TLS": "disabled",
        "OCI_VERSION": "dev",
        "OCI_RESULTS_DIR": str(directory),
        **more,
    }
    status, printed, counted = outcomes("conformance", directory, settings)
    assert status == 0, printed[-5000:]
    assert counted == {"passed": passed}
    daemon.check_log()


def test_the_suite_of_the_next_version(alone: Daemon) -> None:
    """With all that it can try but manifests whose parts are missing, which k3dreg refuses."""
    check_next_version(alone, "conformance", 793)


def test_the_suite_of_the_next_version_with_manifests_whose_parts_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_VALIDATION_DISABLED", "true")
    with running(NO_ENGINE, tmp_path) as daemon:
        check_next_version(daemon, "conformance-sparse", 830, OCI_DATA_SPARSE="true")
