"""Containers, by an engine that answers as Docker does."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker import containers
from k3dreg.docker.containers import Container, ListedContainer, Membership, bind_mounts, parse_container
from k3dreg.oci.errors import EngineError, EngineUnavailable
from tests.fakes.documents import Requests

T = TypeVar("T")


class ContainerTests(SynchronousTestCase):
    def inspect(self, answer: object, name: str = "k3d-reg") -> Deferred[Container | None]:
        self.requests = Requests(answer)
        return Deferred.fromCoroutine(containers.inspect(self.requests, name))

    def test_a_container_is_inspected_by_its_quoted_name(self) -> None:
        container = self.successResultOf(self.inspect({"Name": "/k3d-reg"}, "../k3d?reg"))
        assert container is not None
        self.assertEqual(container.name, "k3d-reg")
        self.assertEqual(self.requests.asked, [("GET /containers/..%2Fk3d%3Freg/json", {})])

    def test_a_container_that_the_engine_does_not_have_is_none(self) -> None:
        self.assertIsNone(self.successResultOf(self.inspect(EngineError("No such container: k3d-reg", status=404))))

    def test_every_other_error_is_told(self) -> None:
        for error in (EngineError("out of memory", status=500), EngineUnavailable("Docker is down")):
            self.failureResultOf(self.inspect(error), type(error))

    def test_a_container_whose_removal_has_begun_is_going(self) -> None:
        for status, is_going in (("running", False), ("created", False), ("removing", True), ("dead", True)):
            container = self.successResultOf(self.inspect({"State": {"Status": status}}))
            assert container is not None
            self.assertEqual((container.status, container.is_going), (status, is_going))

    def test_containers_are_listed_by_all_of_their_labels(self) -> None:
        requests = Requests([{"Id": "1", "State": "created", "Labels": {"a": "b"}}, {"Id": "2", "Labels": None}, {}, 5])
        listed = self.done(containers.with_labels(requests, {"a": "b", "c": "d"}))
        self.assertEqual(listed, [ListedContainer("1", "created", {"a": "b"}), ListedContainer("2")])
        params = {"all": "1", "filters": '{"label": ["a=b", "c=d"]}'}
        self.assertEqual(requests.asked, [("GET /containers/json", params)])
        nothings: list[object] = [None, {}]
        for nothing in nothings:
            self.assertEqual(self.done(containers.with_labels(Requests(nothing), {})), [])

    def test_a_container_is_created_with_the_first_directories_that_the_host_has(self) -> None:
        missing = EngineError("bind source path does not exist: /a", status=400)
        requests = Requests(missing, {"Id": "1", "Warnings": []})
        made = containers.create(requests, "n", [("/a",), ("/b", "/c")], lambda each: {"Mounts": bind_mounts(each)})
        self.assertEqual(self.done(made), ("1", ("/b", "/c")))
        self.assertEqual(requests.asked, [("POST /containers/create", {"name": "n"})] * 2)
        mounts = [json.loads(cast(bytes, data))["Mounts"] for data in requests.data]
        self.assertEqual([[each["Source"] for each in one] for one in mounts], [["/a"], ["/b", "/c"]])
        self.assertEqual([each["Target"] for each in mounts[1]], ["/0", "/1"])

    def test_a_container_that_the_engine_refuses_is_not_tried_with_other_directories(self) -> None:
        denied = EngineError("authorization denied by plugin", status=403)
        answers: list[object] = [denied, EngineUnavailable("the engine was replaced", status=400), {"Warnings": []}]
        for answer in answers:
            requests = Requests(answer)
            made = Deferred.fromCoroutine(containers.create(requests, "n", [("/a",), ("/b",)], lambda _: {}))
            self.failureResultOf(made, EngineError)
            self.assertEqual(len(requests.asked), 1)

    def test_a_container_that_is_gone_is_removed(self) -> None:
        for answer in (b"", EngineError("no such container", status=404), EngineError("in progress", status=409)):
            requests = Requests(answer)
            self.done(containers.remove(requests, "1"))
            self.assertEqual(requests.asked, [("DELETE /containers/1", {"force": "1", "v": "1"})])
        removed = Deferred.fromCoroutine(containers.remove(Requests(EngineError("out of memory", status=500)), "1"))
        self.failureResultOf(removed, EngineError)

    def done(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))


def test_ports_of_other_protocols_and_ports_that_are_not_chosen_are_left_out() -> None:
    ports = {
        "5000/tcp": [{"HostPort": "5005"}, {"HostPort": "0"}, {}, 5],
        "53/udp": [{"HostPort": "53"}],
        "1/tcp": None,
    }
    told = {"NetworkSettings": {"Ports": ports}, "HostConfig": {"PortBindings": {"7000/tcp": [{"HostPort": "7007"}]}}}
    assert parse_container(told).tcp_ports == (("5000", "5005"), ("7000", "7007"))


def test_a_containers_networks_are_told_with_its_names_and_the_hosts_address_there() -> None:
    networks = {"k3d-dev": {"Aliases": ["k3dreg", 5], "Gateway": "172.18.0.1"}, "none": None}
    container = parse_container({"NetworkSettings": {"Networks": networks}})
    assert container.networks == (Membership("k3d-dev", ("k3dreg", "5"), "172.18.0.1"), Membership("none"))
    assert container.aliases == ("k3dreg", "5")


@pytest.mark.parametrize(
    "told", [None, [], {}, {"Config": None, "NetworkSettings": []}, {"NetworkSettings": {"Networks": [None]}}]
)
def test_an_odd_description_is_an_empty_container(told: object) -> None:
    assert parse_container(told) == Container()
