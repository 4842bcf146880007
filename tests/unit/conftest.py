"""For unit tests: what a test begins, it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.leaks import nothing_left

# The modules whose tests are checked.  Tests elsewhere do not yet close all stores that they open.
_CHECKED = frozenset(
    {
        "test_arriving_blob",
        "test_local_files",
        "test_file_producer",
    }
)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(
    request: pytest.FixtureRequest, tmp_path: Path, _in_a_directory_of_its_own: None
) -> Iterator[None]:
    if request.path.stem not in _CHECKED:
        yield
        return
    with nothing_left(tmp_path):
        yield
