"""Real clients push, and nodes pull what they pushed, by each of the names that it has there."""

from __future__ import annotations

import gzip
import io
import json
import os
import shlex
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.support import rig
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.node import Node
from tests.integration.support.registry_client import RegistryClient, digest_of, manifest
from tests.integration.support.rig import EngineAddress

CLUSTER_NAME = "k3d-dev-registry:5000"
NOBODY = EngineAddress("nobody", "unix:///nonexistent/docker.sock")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without an engine: what nodes get from it was pushed."""
    with running(NOBODY, tmp_path_factory.mktemp("pushes"), "--alias", CLUSTER_NAME) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def tools() -> list[str]:
    """The words before a command that is to run where Debian's clients are installed."""
    return shlex.split(rig.setting("K3DREG_TEST_DOCKER"))[:-1]


def archive(content: bytes) -> bytes:
    """A root file system of one file."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        entry = tarfile.TarInfo("content")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def content_of(client: RegistryClient, repository: str, tag: str) -> bytes:
    """What the one file of a pushed image holds; every digest on the way is checked."""
    base = f"/v2/{repository}"
    manifest = client.get(f"{base}/manifests/{tag}")
    assert manifest.status == 200, manifest
    assert manifest.headers["docker-content-digest"] == digest_of(manifest.body)
    if "manifests" in manifest.json:
        found = [each for each in manifest.json["manifests"] if each.get("platform", {}).get("os") != "unknown"]
        return content_of(client, repository, found[0]["digest"])
    layers = []
    for part in (manifest.json["config"], *manifest.json["layers"]):
        answer = client.get(f"{base}/blobs/{part['digest']}")
        assert (answer.status, digest_of(answer.body), len(answer.body)) == (200, part["digest"], part["size"])
        layers.append(answer.body)
    layer = layers[-1]
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer)) as tar:
        file = tar.extractfile("content")
        assert file is not None
        return file.read()


def mirror(node: Node, names: list[str], host: str) -> list[Path]:
    """What k3d writes into its nodes: an endpoint for each name of the registry."""
    made = []
    for name in names:
        directory = node.address.directory / "certs.d" / (name.replace(":", "_") + "_")
        directory.mkdir(parents=True, exist_ok=True)
        text = f'server = "http://127.0.0.1:1"\n[host."http://{host}"]\n  capabilities = ["pull", "resolve"]\n'
        (directory / "hosts.toml").write_text(text)
        made.append(directory)
    return made


def check_node_pulls(registry: Daemon, repository: str, tag: str) -> None:
    """As `localhost:<port>` (Skaffold's pods), `<name>:5000` (Tilt's), and with the registry's own host: without ns."""
    port = registry.host.rpartition(":")[2]
    names = [f"localhost:{port}", CLUSTER_NAME, f"127.0.0.1:{port}"]
    digest = RegistryClient(registry.host).head(f"/v2/{repository}/manifests/{tag}").headers["docker-content-digest"]
    for address in rig.nodes():
        node = Node(address)
        made = mirror(node, names, registry.host)
        try:
            for name in names:
                image = f"{name}/{repository}:{tag}"
                node.pull(image)
                assert node.digest(image) == digest
                assert digest in node.contents()
                node.ctr("images", "rm", "--sync", image)
        finally:
            for directory in made:
                (directory / "hosts.toml").unlink()
                directory.rmdir()


def test_docker_push_then_nodes_pull_by_every_name(engine: EngineAddress, registry: Daemon) -> None:
    docker, client, content = Docker(engine.socket), RegistryClient(registry.host), os.urandom(3_000_000)
    repository = f"pushed/{uuid.uuid4().hex[:12]}"
    name = f"{registry.host}/{repository}"
    query = {"fromSrc": "-", "repo": name, "tag": "t"}
    docker.progress("POST", "/images/create", body=archive(content), query=query, content_type="application/x-tar")
    try:
        docker.push(name, "t")
        assert content_of(client, repository, "t") == content
        # A second push finds everything there, and a tag more is a manifest more and no layer.
        docker.tag(f"{name}:t", name, "again")
        docker.push(name, "again")
        assert client.get(f"/v2/{repository}/tags/list").json["tags"] == ["again", "t"]
    finally:
        docker.remove(f"{name}:again")
        docker.remove(f"{name}:t")
    assert docker.inspect(f"{name}:t") is None
    docker.pull(name, "t")
    docker.remove(f"{name}:t")
    check_node_pulls(registry, repository, "t")
    registry.check_log()


def run(tools: list[str], command: str) -> str:
    """A shell command beside Debian's clients."""
    done = subprocess.run([*tools, "sh", "-ec", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def need(tools: list[str], program: str) -> None:
    if subprocess.run([*tools, "which", program], capture_output=True, check=False).returncode != 0:
        rig.unavailable(f"{program} is not installed:")


@pytest.fixture
def source(registry: Daemon) -> tuple[str, bytes]:
    """An image that was pushed before, as REPOSITORY, and what its file holds."""
    client, content, repository = RegistryClient(registry.host), os.urandom(500_000), f"src/{uuid.uuid4().hex[:12]}"
    layer = archive(content)
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer)]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    for data in (config, gzip.compress(layer, mtime=0)):
        client.push_blob(repository, data)
    client.push_manifest(repository, "t", manifest(config, [gzip.compress(layer, mtime=0)]))
    return repository, content


COPIES = {
    "crane": "crane copy --insecure {host}/{source}:t {host}/{target}:t &&"
    " crane validate --insecure --remote {host}/{target}:t",
    "skopeo": "skopeo copy --src-tls-verify=false --dest-tls-verify=false"
    " docker://{host}/{source}:t docker://{host}/{target}:t",
    "oras": "oras copy --from-plain-http --to-plain-http {host}/{source}:t {host}/{target}:t",
    "podman": "podman pull --tls-verify=false {host}/{source}:t && podman tag {host}/{source}:t {host}/{target}:t &&"
    " podman push --tls-verify=false {host}/{target}:t; s=$?;"
    " podman rmi -f {host}/{target}:t {host}/{source}:t; exit $s",
}


@pytest.mark.parametrize("program", COPIES)
def test_clients_copy_an_image(registry: Daemon, tools: list[str], program: str, source: tuple[str, bytes]) -> None:
    need(tools, program)
    repository, content = source
    target = f"{program}/{uuid.uuid4().hex[:12]}"
    run(tools, COPIES[program].format(host=registry.host, source=repository, target=target))
    assert content_of(RegistryClient(registry.host), target, "t") == content
    check_node_pulls(registry, target, "t")


def test_crane_lists_and_deletes(registry: Daemon, tools: list[str], source: tuple[str, bytes]) -> None:
    need(tools, "crane")
    name = f"{registry.host}/{source[0]}"
    assert run(tools, f"crane ls --insecure {name}").split() == ["t"]
    assert source[0] in run(tools, f"crane catalog --insecure {registry.host}").split()
    run(tools, f"crane delete --insecure {name}@$(crane digest --insecure {name}:t)")
    assert RegistryClient(registry.host).get(f"/v2/{source[0]}/manifests/t").status == 404


def test_oras_attaches_and_finds_a_referrer(registry: Daemon, tools: list[str], source: tuple[str, bytes]) -> None:
    need(tools, "oras")
    name = f"{registry.host}/{source[0]}"
    run(
        tools,
        "cd $(mktemp -d) && echo hello > sbom.txt && "
        f"oras attach --plain-http --artifact-type example/sbom {name}:t sbom.txt:text/plain && rm -r $PWD",
    )
    assert "example/sbom" in run(tools, f"oras discover --plain-http {name}:t")
    assert "example/sbom" not in run(tools, f"oras discover --plain-http --artifact-type example/other {name}:t")
