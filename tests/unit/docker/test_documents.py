"""JSON documents of an engine."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker.documents import ask
from k3dreg.oci.errors import EngineError
from tests.fakes.documents import Requests


class DocumentTests(SynchronousTestCase):
    def test_a_document_is_what_it_is_and_nothing_is_an_empty_one(self) -> None:
        for told, meant in ((b'{"a": [1]}', {"a": [1]}), (b"", {}), (b"\r\n", {}), (b"null", None)):
            self.assertEqual(self.successResultOf(Deferred.fromCoroutine(ask(Requests(told), "GET", "/x"))), meant)

    def test_what_is_no_json_is_an_error_that_says_of_what(self) -> None:
        for told in (b"<html>", b"[" * 100_000):
            asking = Deferred.fromCoroutine(ask(Requests(told), "GET", "/x", "the list of things"))
            self.assertIn("the list of things", str(self.failureResultOf(asking, EngineError).value))
