"""Small things about files."""

from __future__ import annotations

from pathlib import Path

import pytest

from k3dreg.store.durable_files import write_whole


def test_what_cannot_be_put_in_its_place_leaves_no_staged_file(tmp_path: Path) -> None:
    (tmp_path / "target" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "target", tmp_path / "staged", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
