"""JSON documents of an engine, and a list that it fails to make while images are removed."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker.documents import ask, ask_images
from k3dreg.oci.errors import EngineError, EngineUnavailable
from k3dreg.streaming.content import IByteStream
from tests.fakes.body import FakeBody

# As Docker 28.5 said it.
GONE = EngineError("failed to retrieve image list: NotFound: content digest sha256:65…94: not found", status=404)


class Requests:
    """Answers, one after the other; the last one for ever."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def request(self, method: str, path: str, **more: Any) -> Any:
        self.asked.append((f"{method} {path}", more))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def body(self, response: Any, what: str) -> IByteStream:
        return FakeBody([response])


class DocumentTests(SynchronousTestCase):
    def images(self, *answers: bytes | Exception) -> Deferred[list[Any]]:
        self.requests = Requests(*answers)
        return Deferred.fromCoroutine(ask_images(cast(Any, self.requests), params={"all": "1"}))

    def test_a_document_is_what_it_is_and_nothing_is_an_empty_one(self) -> None:
        for told, meant in ((b'{"a": [1]}', {"a": [1]}), (b"", {}), (b"\r\n", {}), (b"null", None)):
            requests = cast(Any, Requests(told))
            self.assertEqual(self.successResultOf(Deferred.fromCoroutine(ask(requests, "GET", "/x"))), meant)

    def test_what_is_no_json_is_an_error_that_says_of_what(self) -> None:
        for told in (b"<html>", b"[" * 100_000):
            asking = Deferred.fromCoroutine(ask(cast(Any, Requests(told)), "GET", "/x", "the list of things"))
            self.assertIn("the list of things", str(self.failureResultOf(asking, EngineError).value))

    def test_a_list_that_fails_for_an_image_that_was_just_removed_is_asked_for_again(self) -> None:
        self.assertEqual(self.successResultOf(self.images(GONE, GONE, b'[{"Id": "x"}]')), [{"Id": "x"}])
        self.assertEqual(self.requests.asked, [("GET /images/json", {"params": {"all": "1"}})] * 3)

    def test_but_not_for_ever(self) -> None:
        self.failureResultOf(self.images(GONE), EngineError)
        self.assertEqual(len(self.requests.asked), 5)

    def test_another_error_is_told_at_once(self) -> None:
        for error in (EngineError("out of memory", status=500), EngineUnavailable("the socket was not found")):
            self.failureResultOf(self.images(error), type(error))
            self.assertEqual(len(self.requests.asked), 1)

    def test_a_list_that_is_none_is_empty(self) -> None:
        self.assertEqual(self.successResultOf(self.images(b"null")), [])
