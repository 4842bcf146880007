"""Finding out this registry's names, and Docker's images, from an engine that answers as Docker does."""

from __future__ import annotations

import json
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.oci.errors import EngineError, EngineUnavailable
from k3dreg.oci.reference import Repository, Tag
from k3dreg.registry.own_name_discovery import EngineImageNames, learn_names
from k3dreg.registry.own_names import OwnNames
from k3dreg.streaming.content import IByteStream
from tests.fakes.body import FakeBody
from tests.fakes.logs import heard
from tests.fakes.workers import InlineWorkers

CONTAINER = {
    "Name": "/k3d-reg",
    "Config": {"Hostname": "k3d-reg", "Labels": None},
    "NetworkSettings": {"Ports": {"5000/tcp": [{"HostIp": "0.0.0.0", "HostPort": "5005"}]}},
}


class Requests:
    """The part of `IEngineRequests` that is used: a document, or an error, by path."""

    store = ImageStore.CLASSIC

    def __init__(self, **answers: object) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def info(self) -> EngineInfo:
        return EngineInfo("", "", (1, 44), self.store, "", "")

    async def request(self, method: str, path: str, **more: Any) -> Any:
        self.asked.append(path)
        answer = self.answers[path.split("/")[1]]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def body(self, response: Any, what: str) -> IByteStream:
        return FakeBody([response if isinstance(response, bytes) else json.dumps(response).encode()])


class LearningTests(SynchronousTestCase):
    def learn(self, requests: Requests, hostname: str = "k3d-reg") -> OwnNames:
        self.names, self.clock = OwnNames(), Clock()
        self.learning = Deferred.fromCoroutine(
            learn_names(self.names, cast(Any, requests), hostname, [5000], self.clock)
        )
        return self.names

    def test_in_a_container_the_published_port_counts(self) -> None:
        names = self.learn(Requests(containers=CONTAINER))
        self.successResultOf(self.learning)
        self.assertTrue(names.is_own("localhost:5005"))
        self.assertTrue(names.is_own("k3d-reg:5000"))
        self.assertFalse(names.is_own("localhost:5000"))

    def test_elsewhere_the_port_itself_counts(self) -> None:
        for answer in (EngineError("no such container", status=404), {"Config": {"Hostname": "somebody-else"}}):
            names = self.learn(Requests(containers=answer))
            self.successResultOf(self.learning)
            self.assertTrue(names.is_own("localhost:5000"))
            self.assertTrue(names.is_own("k3d-reg:5000"))

    def test_an_engine_that_is_away_is_asked_again_and_meanwhile_the_port_counts(self) -> None:
        requests = Requests(containers=EngineUnavailable("Docker is down"))
        names = self.learn(requests)
        self.assertTrue(names.is_own("localhost:5000"))
        self.clock.pump([1.0] * 10)
        self.assertNoResult(self.learning)
        self.assertGreater(len(requests.asked), 3)
        requests.answers["containers"] = CONTAINER
        self.clock.pump([1.0] * 3)
        self.successResultOf(self.learning)
        self.assertTrue(names.is_own("localhost:5005"))

    def test_an_engine_that_refuses_is_asked_less_and_less_often_and_that_is_said_once(self) -> None:
        requests = Requests(containers=EngineError("authorization denied by plugin", status=403))
        with heard() as lines:
            names = self.learn(requests)
            self.clock.pump([1.0] * 3600)
        self.assertTrue(names.is_own("localhost:5000"))
        self.assertLess(len(requests.asked), 25)
        self.assertEqual(len([line for line in lines if "authorization denied by plugin" in line]), 1)
        requests.answers["containers"] = CONTAINER
        self.clock.pump([1.0] * 300)
        self.successResultOf(self.learning)
        self.assertTrue(names.is_own("localhost:5005"))

    def test_a_hostname_that_cannot_be_a_registrys_name_is_left_out_and_quoted(self) -> None:
        requests = Requests(containers=EngineError("no such container", status=404))
        names = self.learn(requests, "../my_host")
        self.assertEqual(requests.asked, ["/containers/..%2Fmy_host/json"])
        self.assertTrue(names.is_own("localhost:5000"))
        self.assertFalse(any("my_host" in host for host in names.hosts))

    def test_the_engines_images_by_name(self) -> None:
        images = [{"RepoTags": ["app:t", "localhost:5005/app:u", "<none>:<none>"]}, {"RepoTags": None}, {}, 5]
        # Of k3dreg's own containers, for a moment.
        images.append({"RepoTags": [f"k3dreg-reader:0123abcd-{'0' * 32}", f"localhost/k3dreg-probe:o-{'0' * 32}"]})
        listing = EngineImageNames(cast(Any, Requests(images=images)), InlineWorkers())
        self.assertEqual(
            self.successResultOf(Deferred.fromCoroutine(listing.names())),
            [(Repository(None, "app"), Tag("t")), (Repository("localhost:5005", "app"), Tag("u"))],
        )

    def test_podmans_images_by_the_names_that_people_use(self) -> None:
        tags = [
            "localhost/app:t",
            "docker.io/library/app:u",
            "127.0.0.1:5005/app:v",
            f"localhost/app@sha256:{'0' * 64}",
        ]
        requests = Requests(images=[{"RepoTags": tags}])
        requests.store = ImageStore.PODMAN
        self.assertEqual(
            self.successResultOf(
                Deferred.fromCoroutine(EngineImageNames(cast(Any, requests), InlineWorkers()).names())
            ),
            [
                (Repository(None, "app"), Tag("t")),
                (Repository(None, "app"), Tag("u")),
                (Repository("127.0.0.1:5005", "app"), Tag("v")),
            ],
        )

    def test_an_answer_that_makes_no_sense_is_the_engines_error(self) -> None:
        listing = EngineImageNames(cast(Any, Requests(images=b"<html>")), InlineWorkers())
        self.failureResultOf(Deferred.fromCoroutine(listing.names()), EngineError)
