"""An engine that answers requests one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from twisted.web.iweb import IBodyProducer, IResponse

from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.streaming.content import IByteStream
from tests.fakes.body import FakeBody


class Requests:
    """Gives the answers, which are errors, bytes, or else JSON documents; the last one for ever."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.data: list[object] = []

    async def info(self) -> EngineInfo:
        return EngineInfo("", "", (1, 51), ImageStore.CONTAINERD, "", "")

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | list[str]] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | IBodyProducer | None = None,
        versioned: bool = True,
        max_wait: float | None = None,
    ) -> IResponse:
        self.asked.append((f"{method} {path}", params or {}))
        self.data.append(data)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return cast(IResponse, answer)

    def body(self, response: IResponse, what: str, *, silence: float | None = None) -> IByteStream:
        answer: object = response
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        return FakeBody([data])
