"""What the image sources hold of the engine's files, and that it ends with the daemon."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from k3dreg.config.options import Options
from k3dreg.daemon import image_sources
from k3dreg.daemon.closing import Closing
from k3dreg.daemon.image_sources import make_files
from k3dreg.engine_files.own_container import OwnContainer
from k3dreg.streaming.file_handles import Handle
from tests.fakes.archive_api import INFO, FakeArchiveApi
from tests.fakes.engine_files import FakeEngineFiles
from tests.fakes.workers import InlineWorkers


class FakeHelper:
    """Passes directories of this machine."""

    def __init__(self, *arguments: object) -> None:
        pass

    async def pass_directories(self, alternatives: Sequence[tuple[str, ...]]) -> Mapping[str, Handle]:
        return {directory: Handle(os.open(directory, os.O_PATH)) for directory in alternatives[0]}


def open_below(directory: Path) -> list[str]:
    """The open files of this process that are below the directory."""
    numbers = os.listdir("/proc/self/fd")
    targets = [
        os.readlink(f"/proc/self/fd/{number}") for number in numbers if os.path.lexists(f"/proc/self/fd/{number}")
    ]
    return [target for target in targets if target.startswith(str(directory))]


def test_directories_that_docker_passed_are_closed_with_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, state = tmp_path / "docker", tmp_path / "state"
    (root / "containerd/daemon/io.containerd.content.v1.content").mkdir(parents=True)
    (state / "staging").mkdir(parents=True)
    monkeypatch.setattr(image_sources, "find_own_container", lambda: OwnContainer("a" * 64, True))
    monkeypatch.setattr(image_sources, "HelperContainer", FakeHelper)
    # Nothing is read in place without what was passed.
    monkeypatch.setattr(image_sources, "files_here", lambda *arguments: FakeEngineFiles({}))
    options = Options({"HOME": str(tmp_path)})
    options.parseOptions(["--state-dir", str(state), "--docker", "unix:///nonexistent/docker.sock"])
    engine: Any = FakeArchiveApi({})
    engine.engine_info = evolve(INFO, root_dir=str(root))
    closing, arrivals = Closing(), cast(Any, None)  # no image is read
    Deferred.fromCoroutine(make_files(options.config, engine, InlineWorkers(), arrivals, Clock(), closing))
    assert open_below(root)
    Deferred.fromCoroutine(closing.close())
    assert open_below(root) == []
