"""Real clients push, and nodes pull what they pushed, by each of the names that it has there."""

from __future__ import annotations

import os
import shlex
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.integration.support import rig
from tests.integration.support.clients import around, build_with_ko, run
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker, build_context
from tests.integration.support.node import Node
from tests.integration.support.one_file import Fetch, archive, content_of, from_registry, layout
from tests.integration.support.registry_client import RegistryClient, digest_of
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


def from_node(node: Node) -> Fetch:
    return lambda kind, reference: node.content(reference)


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


def check_node_pulls(registry: Daemon, repository: str, content: bytes, nodes: Sequence[rig.NodeAddress]) -> None:
    """By each name that a pod may have for it; the node then holds the very bytes that were pushed.

    Tilt's pods say `<name>:5000`, Skaffold's `localhost:<port>` with tag and digest; the registry's own host makes the
    node ask without `ns`.
    """
    client, port = RegistryClient(registry.host), registry.host.rpartition(":")[2]
    names = [f"localhost:{port}", CLUSTER_NAME, f"127.0.0.1:{port}"]
    digest = client.head(f"/v2/{repository}/manifests/t").headers["docker-content-digest"]
    forms = [f"{name}/{repository}:t" for name in names] + [f"{names[0]}/{repository}:t@{digest}"]
    for address in nodes:
        node = Node(address)
        made = mirror(node, names, registry.host)
        try:
            for image in forms:
                node.clean()
                node.pull(image)
                name, at, _ = image.partition("@")
                assert node.digest(f"{name.rpartition(':')[0]}@{digest}" if at else image) == digest
                assert content_of(from_node(node), digest) == content
        finally:
            node.clean()
            for directory in made:
                (directory / "hosts.toml").unlink()
                directory.rmdir()


def test_docker_push_then_a_node_pulls_by_every_name(engine: EngineAddress, registry: Daemon) -> None:
    docker, client, content = Docker(engine.socket), RegistryClient(registry.host), os.urandom(3_000_000)
    repository = f"pushed/{uuid.uuid4().hex[:12]}"
    name = f"localhost:{registry.host.rpartition(':')[2]}/{repository}"
    query = {"fromSrc": "-", "repo": name, "tag": "t"}
    docker.progress("POST", "/images/create", body=archive(content), query=query, content_type="application/x-tar")
    try:
        docker.push(name, "t")
        assert content_of(from_registry(client, repository), "t") == content
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
    check_node_pulls(registry, repository, content, rig.nodes()[:1])
    registry.check_log()


# The image comes as the tar of an OCI layout, so everything has to be sent.
_UNPACKED = 'd=$(mktemp -d); trap "rm -r $d" EXIT; tar -xC $d;'
PUSHES = {
    "crane": "crane push --insecure $d {image}",
    "skopeo": "skopeo copy --dest-tls-verify=false oci:$d:t docker://{image}",
    "oras": "oras copy --from-oci-layout --to-plain-http $d:t {image}",
    "podman": "id=$(podman pull -q oci:$d:t); s=0; podman push --tls-verify=false $id docker://{image} || s=1;"
    " podman rmi -f $id; exit $s",
    "regctl-current": "i={image}; regctl --host reg=${{i%%/*}},tls=disabled image copy ocidir://$d:t $i",
}
PUSHES |= {f"{program}-current": PUSHES[program] for program in ("crane", "oras")}


def pushed_by(registry: Daemon, tools: list[str], program: str) -> tuple[str, bytes]:
    """Returns the repository, where it is tagged `t`, and what the image's one file holds."""
    content, repository = os.urandom(3_000_000), f"{program}/{uuid.uuid4().hex[:12]}"
    command = _UNPACKED + PUSHES[program].format(image=f"{registry.host}/{repository}:t")
    run(around(tools, program), command, layout(content))
    return repository, content


@pytest.mark.parametrize("program", PUSHES)
def test_clients_push_an_image(registry: Daemon, tools: list[str], program: str) -> None:
    repository, content = pushed_by(registry, tools, program)
    assert content_of(from_registry(RegistryClient(registry.host), repository), "t") == content
    check_node_pulls(registry, repository, content, rig.nodes()[:1])


@pytest.mark.every_node
def test_every_node_pulls_by_every_name(registry: Daemon, tools: list[str]) -> None:
    repository, content = pushed_by(registry, tools, "crane")
    check_node_pulls(registry, repository, content, rig.nodes())


# The Docker client of the tests, which has BuildKit's, lives with these engines.
@pytest.mark.engines("docker29", "docker29-classic")
def test_buildx_builds_and_pushes(engine: EngineAddress, registry: Daemon) -> None:
    socket = engine.inner_socket
    content, repository = os.urandom(3_000_000), f"buildx/{uuid.uuid4().hex[:12]}"
    name = f"localhost:{registry.host.rpartition(':')[2]}/{repository}:t"
    client = rig.setting("K3DREG_TEST_DOCKER").split()
    command = [*client, "-H", f"unix://{socket}", "buildx", "build", "--push", "--tag", name, "-"]
    context = build_context({"Dockerfile": b"FROM scratch\nCOPY content /\n", "content": content})
    try:
        built = subprocess.run(command, input=context, capture_output=True, timeout=120, check=False)
        assert built.returncode == 0, built.stderr.decode()
    finally:
        Docker(engine.socket).remove(name)
    assert content_of(from_registry(RegistryClient(registry.host), repository), "t") == content
    check_node_pulls(registry, repository, content, rig.nodes()[:1])


def test_ko_builds_and_pushes(registry: Daemon, tools: list[str], tmp_path: Path) -> None:
    """From Go's source, on a base that is in the registry."""
    base, _ = pushed_by(registry, tools, "crane-current")
    repository, message = f"ko/{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    build_with_ko(tmp_path, f"{registry.host}/{repository}", f"{registry.host}/{base}:t", message)
    if not rig.nodes():
        rig.unavailable("K3DREG_TEST_NODES is not set:")
    node, image = Node(rig.nodes()[0]), f"{registry.host}/{repository}:t"
    (made,) = mirror(node, [registry.host], registry.host)
    try:
        node.pull(image)
        assert node.run(image) == message
    finally:
        node.clean()
        (made / "hosts.toml").unlink()
        made.rmdir()


def test_buildctl_builds_and_pushes(registry: Daemon, tools: list[str], tmp_path: Path) -> None:
    """BuildKit's own client and daemon, as CI systems have them."""
    content, repository = os.urandom(3_000_000), f"buildctl/{uuid.uuid4().hex[:12]}"
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\nCOPY content /\n")
    (context / "content").write_bytes(content)
    address = f"unix://{tmp_path}/buildkitd.sock"
    # Nothing is executed in a container here, so no runtime is needed.
    daemon = ["buildkitd", "--root", str(tmp_path / "root"), "--addr", address, "--containerd-worker=false"]
    daemon += ["--oci-worker=true", "--oci-worker-snapshotter=native", "--oci-worker-binary=/bin/true"]
    daemon += ["--oci-worker-net=host", "--otel-socket-path", str(tmp_path / "traces.sock")]
    words = around(tools, "buildctl-current")
    with (tmp_path / "buildkitd.log").open("wb") as log:
        process = subprocess.Popen([*words, *daemon], stdout=log, stderr=log)
    try:
        client = f"buildctl --addr {address}"
        run(words, f"timeout 60 sh -c 'until {client} debug workers; do sleep 0.2; done'")
        output = f"type=image,name={registry.host}/{repository}:t,push=true,registry.insecure=true"
        run(
            words,
            f"{client} build --frontend dockerfile.v0 --local context={context} --local dockerfile={context}"
            f" --output {output}",
        )
    finally:
        process.terminate()
        process.wait(30)
    assert content_of(from_registry(RegistryClient(registry.host), repository), "t") == content
    check_node_pulls(registry, repository, content, rig.nodes()[:1])


# From one repository to another of the same registry, so what can be mounted is.
COPIES = {
    "crane": "crane copy --insecure {source} {target} && crane validate --insecure --remote {target}",
    "skopeo": "skopeo copy --src-tls-verify=false --dest-tls-verify=false docker://{source} docker://{target}",
    "oras": "oras copy --from-plain-http --to-plain-http {source} {target}",
    "podman": "podman pull --tls-verify=false {source} && podman tag {source} {target} && s=0;"
    " podman push --tls-verify=false {target} || s=1; podman rmi -f {target} {source}; exit $s",
    "regctl-current": "i={source}; regctl --host reg=${{i%%/*}},tls=disabled image copy $i {target}",
}
COPIES |= {f"{program}-current": COPIES[program] for program in ("crane", "oras")}


@pytest.mark.parametrize("program", COPIES)
def test_clients_copy_an_image(registry: Daemon, tools: list[str], program: str) -> None:
    repository, content = pushed_by(registry, tools, program)
    source, target = (f"{registry.host}/{each}:t" for each in (repository, f"{repository}/copy"))
    run(around(tools, program), COPIES[program].format(source=source, target=target))
    assert content_of(from_registry(RegistryClient(registry.host), f"{repository}/copy"), "t") == content


@pytest.mark.parametrize("program", ["crane", "crane-current"])
def test_crane_lists_and_deletes(registry: Daemon, tools: list[str], program: str) -> None:
    repository, _ = pushed_by(registry, tools, program)
    tools = around(tools, program)
    name = f"{registry.host}/{repository}"
    assert run(tools, f"crane ls --insecure {name}").split() == ["t"]
    assert repository in run(tools, f"crane catalog --insecure {registry.host}").split()
    run(tools, f"crane delete --insecure {name}@$(crane digest --insecure {name}:t)")
    assert RegistryClient(registry.host).get(f"/v2/{repository}/manifests/t").status == 404


@pytest.mark.parametrize("program", ["oras", "oras-current"])
def test_oras_attaches_a_referrer_and_finds_it(registry: Daemon, tools: list[str], program: str) -> None:
    repository, content = pushed_by(registry, tools, program)
    tools = around(tools, program)
    name, client = f"{registry.host}/{repository}:t", RegistryClient(registry.host)
    sbom = b"an SBOM says hello"
    attach = "cat > sbom.txt && oras attach --plain-http --artifact-type example/sbom {name} sbom.txt:text/plain"
    run(tools, 'd=$(mktemp -d); trap "rm -r $d" EXIT; cd $d; ' + attach.format(name=name), sbom)
    assert "example/sbom" in run(tools, f"oras discover --plain-http {name}")
    assert "example/sbom" not in run(tools, f"oras discover --plain-http --artifact-type example/other {name}")
    digest = client.head(f"/v2/{repository}/manifests/t").headers["docker-content-digest"]
    (found,) = client.get(f"/v2/{repository}/referrers/{digest}").json["manifests"]
    assert found["artifactType"] == "example/sbom"
    assert digest_of(client.get(f"/v2/{repository}/manifests/{found['digest']}").body) == found["digest"]
    pulled = f"oras pull --plain-http {registry.host}/{repository}@{found['digest']} >&2 && cat sbom.txt"
    assert run(tools, f'd=$(mktemp -d); trap "rm -r $d" EXIT; cd $d; {pulled}').encode() == sbom
    check_node_pulls(registry, repository, content, rig.nodes()[:1])
