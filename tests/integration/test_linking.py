"""Layers linked into real nodes: clusters of a real k3d, and a node as kind makes it, for Docker's two image stores."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from k3dreg.docker.messages import parse_info
from k3dreg.engine_files.layout import chain_ids
from k3dreg.linking.engine_host import find_engine_host
from k3dreg.linking.unpacked_layers import unpacked_layers
from k3dreg.oci.digest import Digest
from tests.integration.support import rig
from tests.integration.support.clusters import MORE, NODE_IMAGE, Clusters
from tests.integration.support.daemon import Daemon, program, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.linked import (
    HOSTS,
    LinkCommand,
    blobs_sent,
    build,
    kind_node,
    leases,
    listing_of,
    prepare_kind,
    rich_image,
    snapshots,
)
from tests.integration.support.registry_client import digest_of


class Cluster:
    """A cluster of k3d with a server and an agent, and k3dreg as root on Docker's machine."""

    def __init__(self, machine: Clusters) -> None:
        self.machine = machine
        self.server, self.agent = sorted(machine.nodes("linking").values(), key=lambda node: "agent" in node.name)
        network = machine.docker.ask("GET", "/networks/k3d-linking")
        self.gateway = network["IPAM"]["Config"][0]["Gateway"]
        self.address = ""  # k3dreg's, as nodes reach it

    @contextlib.contextmanager
    def daemon(self, directory: Path, *options: str) -> Iterator[Daemon]:
        """k3dreg where the nodes reach it, in their mirrors' files."""
        directory.mkdir()
        before = ["nsenter", f"--target={self.machine.pid}", "--net"]
        listen = ("--listen", f"tcp:0:interface={self.gateway}", "--reader", "off")
        with running(self.machine.engine, directory, *listen, *options, before=before) as daemon:
            found = daemon.wait_for(rf"listening on ({re.escape(self.gateway)}:\d+)")
            self.address = found[1]
            self.use_mirror(self.address)
            yield daemon

    def get(self, url: str) -> str:
        """Return what a client in the engine's network reads at a URL."""
        program = (
            "import sys, urllib.request as r; "
            "print(r.urlopen(r.Request(sys.argv[1], headers={'Accept': 'text/html, */*'})).read().decode())"
        )
        return self.machine.run(sys.executable, "-c", program, url)

    def use_mirror(self, host: str) -> None:
        """Let the nodes pull everything from this registry."""
        for node in (self.server, self.agent):
            file = node.address.chroot / "var/lib/rancher/k3s/agent/etc/containerd/certs.d/_default/hosts.toml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(HOSTS.format(host=host))

    def forget(self) -> None:
        """Remove what the nodes have pulled, and what leases keep in them: the next image has the same layers."""
        for node in (self.server, self.agent):
            node.clean()
            for lease in leases(node):
                node.ctr("leases", "rm", "--sync", lease)


@pytest.fixture(scope="module")
def made_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    rig.program("k3d")
    engine, pid = rig.bridged()
    machine = Clusters(engine, pid, tmp_path_factory.mktemp("k3d"))
    machine.prepare()
    machine.clear()
    machine.k3d("cluster", "create", "linking", *MORE, "--agents", "1")
    try:
        yield Cluster(machine)
    finally:
        machine.clear()


@pytest.fixture
def cluster(made_cluster: Cluster) -> Iterator[Cluster]:
    yield made_cluster
    made_cluster.forget()


def test_a_k3d_node_gets_an_images_layers_as_links(cluster: Cluster, tmp_path: Path) -> None:
    machine = cluster.machine
    with rich_image(machine.engine) as name:
        with cluster.daemon(tmp_path / "off") as daemon:
            seconds = cluster.server.pull(name)
            print(f"ordinary pull: {seconds:.2f} s")
            assert "linked" not in daemon.log()
            expected = listing_of(cluster.server, name)
        with cluster.daemon(tmp_path / "on", "--link-layers", "on") as daemon:
            seconds = cluster.agent.pull(name)
            found = daemon.wait_for(r"after: linked (\d+) layers?, ([\d,]+) files, ([\d.]+) s, (\S+),")
            print(f"pull with linking: {seconds:.2f} s; {found[0]}")
            assert found[4] == cluster.agent.name
            assert len(blobs_sent(daemon.log())) == 1  # the config
            assert listing_of(cluster.agent, name) == expected
            assert len(leases(cluster.agent)) == 1
            # It is seen as one pull, by the node's name.
            seen = daemon.wait_for(rf"{name}:latest to {cluster.agent.name}: {found[1]} layers linked, [\d.]+ s")
            page = cluster.get(f"http://{daemon.host}/")
            assert page.count("<details id=") == 1
            assert seen[0].partition(": ")[2] in page
            text = re.sub("<[^>]*>", "", page)
            got = rf"{cluster.agent.name}: 1 pull, [\d.]+ kB sent, {found[1]} layers linked, which saved [\d.]+ [kMG]B"
            assert re.search(got, text), text
            metrics = cluster.get(f"http://{daemon.host}/metrics")
            assert f'k3dreg_pulls_total{{node="{cluster.agent.name}",way="linked"}} 1.0' in metrics
            assert f'k3dreg_linked_layers_total{{node="{cluster.agent.name}"}} {found[1]}.0' in metrics
            assert "Active" not in snapshots(cluster.agent).values()
            # Nothing is left to link for another tag of the image.
            machine.docker.tag(name, name, "other")
            before = len(daemon.log())
            cluster.agent.pull(f"{name}:other")
            assert "linked" not in daemon.log()[before:]
            machine.docker.remove(f"{name}:other")
            # A build in the repository is linked before a pod asks for it, into the node that has pulled from it.
            before = len(daemon.log())
            build(machine.engine, f"{name}:built", f"FROM {name}\nRUN echo {name} > /built\n")
            found = daemon.wait_for(
                rf"{name}:built, before a pod asks for it: linked 1 layer, \d+ files, [\d.]+ s, (\S+)", since=before
            )
            assert found[1] == cluster.agent.name
            before = len(daemon.log())
            print(f"pull of what was linked in advance: {cluster.agent.pull(f'{name}:built'):.2f} s")
            assert len(blobs_sent(daemon.log()[before:])) == 1
            machine.docker.remove(f"{name}:built")
    # Docker's image is gone, the node's is not.
    assert listing_of(cluster.agent, name) == expected


def test_what_was_linked_and_not_pulled_outlives_a_collection(cluster: Cluster, tmp_path: Path) -> None:
    engine = cluster.machine.engine
    with rich_image(engine) as name, cluster.daemon(tmp_path / "on"):
        status, said = LinkCommand(engine, name, cluster.agent.name).ended()
        assert status == 0, said
        assert re.search(
            rf"linked \d+ layers, [\d,]+ files, [\d.]+ s, {cluster.agent.name}; [\d.]+ [kMG]B are neither", said
        )
        linked = {each for each, kind in snapshots(cluster.agent).items() if kind == "Committed"}
        cluster.agent.ctr("content", "prune", "references")
        assert linked <= set(snapshots(cluster.agent))
        _, said = LinkCommand(engine, name, cluster.agent.name).ended()
        assert said.startswith(f"{cluster.agent.name}: nothing to link")
        seconds = cluster.agent.pull(name)
        print(f"pull after linking in advance: {seconds:.2f} s")
        # A kubelet removes an unused image when the disk is nearly full; while the lease lasts, a pod can have it back.
        cluster.agent.remove(name)
        assert linked <= set(snapshots(cluster.agent))
        cluster.agent.pull(name)
        # Without the lease and the image, all of it is collected.
        for lease in leases(cluster.agent):
            cluster.agent.ctr("leases", "rm", "--sync", lease)
        assert linked <= set(snapshots(cluster.agent))
        cluster.agent.remove(name)
        end = time.monotonic() + 20
        while linked & set(snapshots(cluster.agent)):
            assert time.monotonic() < end
            cluster.agent.ctr("content", "prune", "references")
            time.sleep(0.5)


# What a pod may send: an image's manifests, again and again, in the name of another node.
ASKING = """
import json, sys, urllib.request
url, other = sys.argv[1:]
headers = {"Accept": "*/*", "User-Agent": "containerd/v2.3.4", "X-Forwarded-For": other, "X-Real-IP": other,
           "Forwarded": f"for={other}"}
def get(reference):
    with urllib.request.urlopen(urllib.request.Request(f"{url}/{reference}?ns=docker.io", headers=headers)) as answer:
        return json.load(answer)
for _ in range(100):
    for part in get("latest").get("manifests", []):
        get(part["digest"])
"""


def test_a_pod_that_asks_again_and_again_costs_one_linking_into_its_own_node(cluster: Cluster, tmp_path: Path) -> None:
    agent, server = cluster.agent, cluster.server
    with rich_image(cluster.machine.engine) as name, cluster.daemon(tmp_path / "on", "--link-layers", "on") as daemon:
        before = snapshots(server)
        asker, other = (cluster.machine.docker.ask("GET", f"/containers/{node.name}/json") for node in (agent, server))
        addresses = [each["IPAddress"] for each in other["NetworkSettings"]["Networks"].values()]
        # Outside its node, a pod has its node's address.
        enter = ["nsenter", f"--target={asker['State']['Pid']}", "--net", sys.executable, "-c", ASKING]
        url = f"http://{cluster.address}/v2/library/{name}/manifests"
        subprocess.run([*enter, url, addresses[0]], check=True, timeout=120)
        assert re.findall(r"after: linked \d+ layers?, .*? s, (\S+),", daemon.log()) == [agent.name]
        assert snapshots(server) == before
        assert len(leases(agent)) == 1


@pytest.mark.parametrize("words", [["why", NODE_IMAGE], ["doctor"]], ids=["why", "doctor"])
def test_a_command_says_for_each_node_whether_layers_can_be_linked(cluster: Cluster, words: list[str]) -> None:
    command = [*program(), words[0], "--docker", cluster.machine.engine.url, "--link-layers", "on", *words[1:]]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    for node in (cluster.server, cluster.agent):
        assert f"layers can be linked into {node.name}" in said, said


# -- a node as kind makes it, for the classic store -------------------------------------------------------------------


@pytest.mark.engines("docker29", "docker29-classic", "docker20")
def test_a_kind_node_gets_an_images_layers_as_links(engine: rig.EngineAddress, tmp_path: Path) -> None:
    prepare_kind(engine)
    options = ("--reader", "off", "--docker-root", str(engine.directory / "data"))
    with rich_image(engine) as name, running(engine, tmp_path, *options) as daemon:
        with kind_node(engine) as node:
            node.use_mirror(daemon.host)
            print(f"ordinary pull: {node.pull(name):.2f} s")
            expected = listing_of(node, name)
        with kind_node(engine) as node:
            node.use_mirror(daemon.host)
            status, said = LinkCommand(engine, name, node.name).ended()
            assert status == 0, said
            begun = len(daemon.log())
            print(f"pull after linking: {node.pull(name):.2f} s")
            assert len(blobs_sent(daemon.log()[begun:])) == 1
            linked = listing_of(node, name)
            if not engine.containerd_store:
                # Docker's classic store leaves these out of a layer's tar, and has them in its own containers.
                linked = [re.sub(r'"user.note": "31"', "", line) for line in linked]
            assert linked == expected


# Times that a container runs from the linked layers, each of which writes files.
STARTS = int(os.environ.get("K3DREG_TEST_STARTS", "10"))


@pytest.mark.engines("docker29", "docker29-classic")
def test_docker_keeps_its_image_as_it_was(engine: rig.EngineAddress, tmp_path: Path) -> None:
    prepare_kind(engine)
    options = ("--reader", "off", "--docker-root", str(engine.directory / "data"))
    with rich_image(engine) as name, kind_node(engine) as node, running(engine, tmp_path, *options) as daemon:
        before = what_docker_has(engine, name)
        status, said = LinkCommand(engine, name, node.name).ended()
        assert status == 0, said
        node.use_mirror(daemon.host)
        node.pull(name)
        assert len(blobs_sent(daemon.log())) == 1
        writing = "import os; os.chmod('/listing.py', 0o600); open('/usr/bin/env', 'ab').write(b'x'); os.remove('/bin')"
        for _ in range(STARTS):
            node.run(f"docker.io/library/{name}:latest", "python3", "-c", writing)
        after = what_docker_has(engine, name)
        for part, found in before.items():
            assert found == after[part], part


def what_docker_has(engine: rig.EngineAddress, name: str) -> dict[str, object]:
    """Return all that Docker tells of an image, and what all files of its layers are, but for their link counts."""
    docker = Docker(engine.socket)
    described = docker.ask("GET", f"/images/{name}/json")
    filters = json.dumps({"reference": [name]})
    listed = docker.ask("GET", "/images/json", **{"filters": filters, "shared-size": "1"})
    with tarfile.open(fileobj=io.BytesIO(docker.call("GET", f"/images/{name}/get"))) as tar:
        saved = {member.name: digest_of(file.read()) for member in tar if (file := tar.extractfile(member)) is not None}
    info = parse_info(docker.ask("GET", "/info"), docker.ask("GET", "/version"), (1, 47))
    chain = chain_ids(Digest.parse(each) for each in described["RootFS"]["Layers"])
    files: dict[str, object] = {}
    with unpacked_layers(find_engine_host(engine.socket), info, chain, f"k3dreg-test-{uuid.uuid4().hex}") as layers:
        assert len(layers.directories) == len(chain)
        root = find_engine_host(engine.socket).path("")
        for directory in layers.directories:
            for top, directories, names in os.walk(f"{root}{directory}"):
                for path in (os.path.join(top, each) for each in ["", *directories, *names]):
                    files[path] = what_is(path)
    return {"inspect": described, "list": listed, "docker save": saved, "files": files}


def what_is(path: str) -> tuple[object, ...]:
    found = os.lstat(path)
    content = ""
    if stat.S_ISREG(found.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    attributes = {
        name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
    }
    owner = (found.st_mode, found.st_uid, found.st_gid, found.st_rdev)
    return (*owner, found.st_size, found.st_mtime_ns, attributes, content)
