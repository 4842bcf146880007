"""Files in a container, by an engine in memory."""

from __future__ import annotations

import base64
import json
from typing import cast

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from k3dreg.docker import container_files
from k3dreg.docker.container_files import PathStat
from k3dreg.oci.errors import EngineError, EngineUnavailable, FileAbsent
from k3dreg.streaming.content import IByteStream
from tests.fakes.documents import Requests


class Answer:
    """An answer without a body that tells of a file."""

    def __init__(self, told: str) -> None:
        self.headers = Headers({"X-Docker-Container-Path-Stat": [told]})


class Files(Requests):
    def body(self, response: IResponse, what: str, *, silence: float | None = None) -> IByteStream:
        return super().body(cast(IResponse, b""), what)


class StatTests(SynchronousTestCase):
    def stat(self, answer: object) -> Deferred[PathStat]:
        self.requests = Files(answer)
        return Deferred.fromCoroutine(container_files.stat(self.requests, "1", "/0/x"))

    def test_a_file_and_a_directory_are_told_apart(self) -> None:
        for told, stat in (
            ({"name": "x", "size": 5, "mode": 0o644}, PathStat(5, True, False)),
            ({"name": "x", "size": 4096, "mode": 1 << 31 | 0o755}, PathStat(4096, False, True)),
            ({"name": "x", "size": 1, "mode": 1 << 27 | 0o777}, PathStat(1, False, False)),  # a symbolic link
        ):
            answer = Answer(base64.b64encode(json.dumps(told).encode()).decode())
            self.assertEqual(self.successResultOf(self.stat(answer)), stat)
        self.assertEqual(self.requests.asked, [("HEAD /containers/1/archive", {"path": "/0/x"})])

    def test_an_answer_that_tells_nothing_is_the_engines_error(self) -> None:
        for told in ("", "e30=", "W10=", "not base64"):
            self.failureResultOf(self.stat(Answer(told)), EngineError)

    def test_a_file_that_is_not_there_is_absent(self) -> None:
        self.failureResultOf(self.stat(EngineError("", status=404)), FileAbsent)
        for error in (EngineError("out of memory", status=500), EngineUnavailable("Docker is down")):
            self.failureResultOf(self.stat(error), type(error))
