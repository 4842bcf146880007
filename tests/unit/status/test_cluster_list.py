"""The clusters' nodes on the status page."""

from __future__ import annotations

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.reporting.activity import RequestReport
from k3dreg.status.cluster_list import LastPulls, clusters, listed_nodes
from k3dreg.status.overview import ListedNode
from k3dreg.status.status_page import flatten
from tests.fakes.containers import ContainerRequests, FakeContainer

MANIFEST = Descriptor("application/vnd.oci.image.manifest.v1+json", Digest.of(b""), 1)
PULL = RequestReport("1", 1000.0, "172.18.0.2", "GET", "manifest", "app", 200, 1, 0.1, 0.1, manifest=MANIFEST)


class ClusterListTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.engine = ContainerRequests()
        labels, networks = {"k3d.cluster": "dev", "k3d.role": "server"}, {"k3d-dev": list[str]()}
        for name, address in (("k3d-dev-agent-0", "172.18.0.3"), ("k3d-dev-server-0", "172.18.0.2")):
            self.engine.containers.add(FakeContainer(name, labels, networks=networks, address=address))
        self.engine.containers.all["k3d-dev-server-0"].put(
            "/etc/rancher/k3s/registries.yaml", 'mirrors:\n  "*":\n    endpoint:\n    - http://a:1 # k3dreg attach\n'
        )
        self.last = LastPulls()

    def nodes(self) -> list[ListedNode]:
        return list(self.successResultOf(Deferred.fromCoroutine(listed_nodes(self.engine, self.last.times))))

    def test_each_node_is_listed_with_its_state_and_its_last_pull(self) -> None:
        self.last.answered(PULL)
        for report in (
            evolve(PULL, at=2000.0, manifest=None),
            evolve(PULL, at=2000.0, status=404),
            evolve(PULL, at=2000.0, aborted=True),
            evolve(PULL, at=2000.0, client="172.18.0.9"),
        ):
            self.last.answered(report)
        self.assertEqual(
            self.nodes(),
            [
                ListedNode("dev", "k3d-dev-agent-0", "not attached", False),
                ListedNode("dev", "k3d-dev-server-0", "attached to http://a:1, from its next start", True, 1000.0),
            ],
        )

    def test_the_page_has_a_row_for_each_and_what_to_do(self) -> None:
        self.last.answered(PULL)
        page = self.successResultOf(Deferred.fromCoroutine(flatten(clusters(self.nodes(), 1120.0)))).decode()
        for text in ("k3d-dev-server-0", "2 min ago", "none seen", "k3dreg attach CLUSTER"):
            self.assertIn(text, page)
        page = self.successResultOf(Deferred.fromCoroutine(flatten(clusters((), 0.0)))).decode()
        self.assertIn("None of k3d, kind or minikube", page)

    def test_an_engine_that_does_not_answer_lists_none(self) -> None:
        self.engine.down = True
        self.assertEqual(self.nodes(), [])
