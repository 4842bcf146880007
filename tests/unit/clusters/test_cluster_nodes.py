"""Nodes among the engine's containers."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.clusters.cluster_nodes import cluster_nodes, node_at, nodes_by_address
from k3dreg.clusters.node_names import NodeNames
from k3dreg.clusters.nodes import Node, NodeMount
from k3dreg.oci.errors import EngineUnavailable
from tests.fakes.documents import Requests


def listed(identity: str, role: str, address: str) -> dict[str, Any]:
    networks = {"k3d-x": {"IPAddress": address, "GlobalIPv6Address": ""}, "host": None}
    names = ["/linked/alias", f"/{role}-{identity}"]
    return {"Id": identity, "Names": names, "Labels": {"k3d.role": role}, "NetworkSettings": {"Networks": networks}}


def described(name: str, pid: int = 42) -> dict[str, Any]:
    mounts = [{"Source": "/volumes/1", "Destination": "/var/lib/rancher/k3s"}, None]
    return {"Name": f"/{name}", "State": {"Pid": pid}, "Mounts": mounts}


LIST = [
    listed("1", "server", "172.18.0.2"),
    listed("2", "agent", "172.18.0.3"),
    listed("3", "registry", "172.18.0.4"),
    listed("4", "agent", ""),
]
SOCKET = "/run/k3s/containerd/containerd.sock"
AGENT = Node("2", "agent-0", 42, SOCKET, (NodeMount("/volumes/1", "/var/lib/rancher/k3s"),))


class NodeTests(SynchronousTestCase):
    def at(self, address: str, *answers: object) -> Node | None:
        self.requests = Requests(LIST, *answers)
        return self.successResultOf(Deferred.fromCoroutine(node_at(self.requests, address)))

    def test_a_node_is_found_by_its_address(self) -> None:
        self.assertEqual(self.at("172.18.0.3", described("agent-0")), AGENT)
        self.assertEqual([path for path, _ in self.requests.asked], ["GET /containers/json", "GET /containers/2/json"])

    def test_the_address_of_another_container_or_of_none_is_no_nodes(self) -> None:
        for address in ("172.18.0.4", "172.18.0.9", "", "-"):
            self.assertIsNone(self.at(address, described("x")), address)

    def test_a_node_that_has_ended_meanwhile_is_none(self) -> None:
        self.assertIsNone(self.at("172.18.0.3", described("agent-0", 0)))

    def test_an_address_that_two_nodes_have_says_nothing(self) -> None:
        self.requests = Requests([LIST[1], LIST[1]], described("a"), described("b"))
        self.assertIsNone(self.successResultOf(Deferred.fromCoroutine(node_at(self.requests, "172.18.0.3"))))

    def test_minikubes_nodes_have_addresses_too(self) -> None:
        minikube = {**listed("5", "agent", "192.168.49.2"), "Labels": {"role.minikube.sigs.k8s.io": ""}}
        found = self.successResultOf(Deferred.fromCoroutine(nodes_by_address(Requests([*LIST, minikube]))))
        self.assertEqual(sorted(found), ["172.18.0.2", "172.18.0.3", "192.168.49.2"])

    def test_all_nodes(self) -> None:
        self.requests = Requests(LIST[1:3], described("agent-0"))
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(cluster_nodes(self.requests))), [AGENT])


class NameTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.requests = Requests(LIST)
        self.names = NodeNames(self.requests, self.clock)

    def at(self, address: str) -> str:
        return self.successResultOf(Deferred.fromCoroutine(self.names.at(address)))

    def test_a_nodes_name_is_found_by_its_address(self) -> None:
        addresses = ("172.18.0.2", "172.18.0.3", "172.18.0.4", "172.18.0.9", "-")
        self.assertEqual([self.at(address) for address in addresses], ["server-1", "agent-2", "", "", ""])
        self.assertEqual([path for path, _ in self.requests.asked], ["GET /containers/json"])

    def test_the_engine_is_asked_again_after_some_seconds(self) -> None:
        self.at("172.18.0.3")
        self.requests.answers = [[listed("9", "agent", "172.18.0.3")]]
        self.clock.advance(4.9)
        self.assertEqual(self.at("172.18.0.3"), "agent-2")
        self.clock.advance(0.1)
        self.assertEqual(self.at("172.18.0.3"), "agent-9")
        # A node may have begun to run a second ago.
        self.requests.answers = [LIST]
        self.clock.advance(1)
        self.assertEqual(self.at("172.18.0.2"), "server-1")

    def test_an_address_that_two_nodes_have_says_nothing(self) -> None:
        self.requests.answers = [[LIST[1], listed("9", "agent", "172.18.0.3"), LIST[0]]]
        self.assertEqual([self.at("172.18.0.3"), self.at("172.18.0.2")], ["", "server-1"])

    def test_without_an_engine_there_are_no_names(self) -> None:
        self.requests.answers = [EngineUnavailable("no engine")]
        self.assertEqual([self.at("172.18.0.3"), self.at("172.18.0.3")], ["", ""])
        self.assertEqual(len(self.requests.asked), 1)
