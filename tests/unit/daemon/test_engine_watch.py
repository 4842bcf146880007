"""The log says which engine is there, once for each change."""

from __future__ import annotations

from typing import cast

from twisted.internet.task import Clock

from k3dreg.daemon.engine_watch import EngineWatch
from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.docker.interfaces import IEngine
from k3dreg.oci.errors import EngineUnavailable

DOCKER = EngineInfo("", "29.9.3", (1, 51), ImageStore.CONTAINERD, "", "")
NEWER = EngineInfo("", "30.0.0", (1, 51), ImageStore.CLASSIC, "", "")


class Engine:
    """Answers, or is not there."""

    answer: EngineInfo | EngineUnavailable = EngineUnavailable("connection refused", advice="start Docker")

    async def info(self) -> EngineInfo:
        if isinstance(self.answer, EngineUnavailable):
            raise self.answer
        return self.answer


def test_each_change_is_told_once_and_nothing_after_the_end() -> None:
    engine, clock, told = Engine(), Clock(), list[str]()
    watch = EngineWatch(cast(IEngine, engine), "/docker.sock", clock, told.append)
    watch.startService()
    clock.pump([2, 2])
    engine.answer = DOCKER
    clock.pump([2, 2])
    engine.answer = NEWER
    clock.pump([2, 2])
    assert told == [
        "no engine at /docker.sock: connection refused. start Docker",
        "images come from Docker 29.9.3, containerd image store at /docker.sock",
        "images come from Docker 30.0.0, classic image store at /docker.sock",
    ]
    watch.stopService()
    assert clock.getDelayedCalls() == []
