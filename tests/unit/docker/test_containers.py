"""Containers, by an engine that answers as Docker does."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.docker import containers
from k3dreg.docker.containers import Container, parse_container
from k3dreg.oci.errors import EngineError, EngineUnavailable
from tests.fakes.documents import Requests


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


def test_ports_of_other_protocols_and_ports_that_are_not_chosen_are_left_out() -> None:
    ports = {
        "5000/tcp": [{"HostPort": "5005"}, {"HostPort": "0"}, {}, 5],
        "53/udp": [{"HostPort": "53"}],
        "1/tcp": None,
    }
    told = {"NetworkSettings": {"Ports": ports}, "HostConfig": {"PortBindings": {"7000/tcp": [{"HostPort": "7007"}]}}}
    assert parse_container(told).tcp_ports == (("5000", "5005"), ("7000", "7007"))


@pytest.mark.parametrize(
    "told", [None, [], {}, {"Config": None, "NetworkSettings": []}, {"NetworkSettings": {"Networks": {"a": None}}}]
)
def test_an_odd_description_is_an_empty_container(told: object) -> None:
    assert parse_container(told) == Container()
