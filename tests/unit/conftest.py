"""For unit tests: what a test begins, it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.leaks import nothing_left


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(tmp_path: Path, _in_a_directory_of_its_own: None) -> Iterator[None]:
    with nothing_left(tmp_path):
        yield
