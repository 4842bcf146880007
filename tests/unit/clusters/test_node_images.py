"""Nodes are asked for the images that they hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.clusters.node_images import images_on_nodes
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import EngineError, EngineUnavailable
from tests.fakes.documents import Requests

ONE, TWO = Digest.of(b"1"), Digest.of(b"2")
OUTPUT = f"""\
REF                       TYPE                            DIGEST   SIZE    PLATFORMS    LABELS
localhost:5000/app:1      application/vnd.oci.image.index {ONE} 1.2 MiB linux/amd64  io.cri-containerd.image=managed
localhost:5000/app@{TWO}  application/vnd.oci.image.index {TWO} 1.2 MiB linux/amd64  io.cri-containerd.image=managed
"""


def listed(identity: str, state: str = "running", **labels: str) -> dict[str, Any]:
    return {"Id": identity, "Names": [f"/node-{identity}"], "State": state, "Labels": labels or {"k3d.role": "agent"}}


def printed(output: str, status: int = 0) -> list[object]:
    """Return the answers for one command in a node."""
    data = output.encode()
    return [{"Id": "exec"}, b"\1\0\0\0" + len(data).to_bytes(4, "big") + data, {"ExitCode": status}]


class NodeImageTests(SynchronousTestCase):
    def ask(self, *answers: object) -> Mapping[str, Collection[Digest] | None] | None:
        self.engine = Requests(*answers)
        return self.successResultOf(Deferred.fromCoroutine(images_on_nodes(self.engine)))

    def test_each_running_node_of_any_kind_is_asked(self) -> None:
        minikube = listed("b", **{"role.minikube.sigs.k8s.io": ""})
        others = [listed("c", **{"k3d.role": "registry"}), listed("d", **{"some": "label"})]
        held = self.ask([listed("a"), minikube, *others], *printed(OUTPUT), *printed(""))
        self.assertEqual(held, {"a": {ONE, TWO}, "b": set()})
        commands = [str(data) for data in self.engine.data if data and b"Cmd" in bytes(str(data), "utf-8")]
        self.assertIn("/run/k3s/containerd/containerd.sock", commands[0])
        self.assertNotIn("--address", commands[1])

    def test_a_node_that_does_not_tell_is_there(self) -> None:
        self.assertEqual(self.ask([listed("a", "exited")]), {"a": None})
        self.assertEqual(self.ask([listed("a")], EngineError("it is paused", status=409)), {"a": None})
        self.assertEqual(self.ask([listed("a")], *printed(f"no ctr {ONE}", status=127)), {"a": None})

    def test_without_an_engine_nothing_is_known(self) -> None:
        self.assertIsNone(self.ask(EngineUnavailable("no engine")))
