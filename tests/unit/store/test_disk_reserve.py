"""The room on the disk that is kept for a start and for deletions."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from k3dreg.store.disk_reserve import Reserve


def test_the_room_is_taken_once_and_given_back(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve")
    assert not reserve.release()
    reserve.fill()
    reserve.fill()
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= 1 << 20
    assert reserve.release()
    assert list(tmp_path.iterdir()) == []
    assert not reserve.release()


def test_a_disk_without_so_much_room_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    Reserve(tmp_path / "reserve").fill()
    assert list(tmp_path.iterdir()) == []
