"""What a push tool pushes is k3dreg's own, though the very engine that k3dreg reads holds the same image.

Push tools ask whether a manifest is there, and send none where it is.  An answer out of Docker would end the push with
nothing pushed, and the image would be gone with the next `docker rmi`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from tests.integration.support import rig
from tests.integration.support.clients import build_with_ko
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker, build_context
from tests.integration.support.node import Node
from tests.integration.support.one_file import content_of, from_registry, publish
from tests.integration.support.registry_client import MANIFEST, RegistryClient
from tests.integration.support.rig import EngineAddress


@frozen
class Held:
    """An image of one file in the upstream registry, and in an engine under each of `names`.

    `digest` is its index's, `child` the digest of the one manifest that the index lists.
    """

    source: str
    repository: str
    content: bytes
    digest: str
    child: str
    names: tuple[str, ...]


@contextlib.contextmanager
def held(engine: EngineAddress, daemon: Daemon) -> Iterator[Held]:
    """An image that the engine holds under its bare name and under one of k3dreg's, and that k3dreg has read."""
    registry, docker = rig.setting("K3DREG_TEST_REGISTRY"), Docker(engine.socket)
    content, repository = os.urandom(300_000), f"push-from-docker/{uuid.uuid4().hex[:12]}"
    digest, child = publish(registry, repository, content)
    own = f"127.0.0.1:{daemon.host.rpartition(':')[2]}/{repository}"
    docker.pull(f"{registry}/{repository}", "t")
    try:
        for name in (repository, own):
            docker.tag(f"{registry}/{repository}:t", name, "t")
        docker.remove(f"{registry}/{repository}:t")
        # Read once, so that k3dreg knows all parts of it: "is this blob here" is then answered with yes.
        assert content_of(from_registry(RegistryClient(daemon.host), repository), "t") == content
        source = f"{registry}/{repository}:t"
        yield Held(source, repository, content, digest, child, (f"{own}:t", f"{repository}:t"))
    finally:
        for name in (f"{own}:t", f"{repository}:t", f"{registry}/{repository}:t"):
            docker.remove(name)


def check_kept(engine: EngineAddress, daemon: Daemon, image: Held) -> None:
    """Without Docker's copy, and after a restart, clients and nodes still get what was pushed."""
    docker = Docker(engine.socket)
    for name in image.names:
        docker.remove(name)
        assert docker.inspect(name) is None
    daemon.stop()
    daemon.start()
    client = RegistryClient(daemon.host)
    assert content_of(from_registry(client, image.repository), "t") == image.content
    digest = client.head(f"/v2/{image.repository}/manifests/t").headers["docker-content-digest"]
    if not rig.nodes():
        rig.unavailable("K3DREG_TEST_NODES is not set:")
    node = Node(rig.nodes()[0])
    name = f"{daemon.host}/{image.repository}:t"
    with pulled(node, name):
        assert node.digest(name) == digest


@contextlib.contextmanager
def pulled(node: Node, name: str) -> Iterator[None]:
    """The node has pulled `name` from the plain HTTP registry in it."""
    host = name.partition("/")[0]
    directory = node.address.directory / "certs.d" / (host.replace(":", "_") + "_")
    directory.mkdir(parents=True)
    try:
        (directory / "hosts.toml").write_text(f'server = "http://{host}"\n')
        node.pull(name)
        yield
    finally:
        node.ctr("images", "rm", name)
        (directory / "hosts.toml").unlink()
        directory.rmdir()


@pytest.fixture
def daemon(engine: EngineAddress, tmp_path: Path) -> Iterator[Daemon]:
    with running(engine, tmp_path) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def tools() -> list[str]:
    """The words before a command that is to run where Debian's clients are installed."""
    return shlex.split(rig.setting("K3DREG_TEST_DOCKER"))[:-1]


@pytest.mark.every_engine
def test_docker_push(engine: EngineAddress, daemon: Daemon) -> None:
    with held(engine, daemon) as image:
        Docker(engine.socket).push(image.names[0].rpartition(":")[0], "t")
        check_kept(engine, daemon, image)


# `{source}` is where the tool gets it from, `{target}` where it pushes it to.
COPIES = {
    "crane": "crane copy --insecure {source} {target}",
    "skopeo": "skopeo copy --all --src-tls-verify=false --dest-tls-verify=false docker://{source} docker://{target}",
    "oras": "oras copy --from-plain-http --to-plain-http {source} {target}",
    "podman": "podman pull -q --tls-verify=false {source} && s=0;"
    " podman push --tls-verify=false {source} docker://{target} || s=1; podman rmi -f {source}; exit $s",
}


# At their current releases; they are no chroot's.
CURRENT = {
    "crane": "{program} copy --insecure {source} {target}",
    "regctl": "{program} --host reg={host},tls=disabled --host reg={upstream},tls=disabled"
    " image copy {source} {target}",
}


@pytest.mark.engines("docker29", "docker29-classic", "docker26")
@pytest.mark.parametrize("program", COPIES)
def test_clients_push_what_docker_holds(engine: EngineAddress, daemon: Daemon, tools: list[str], program: str) -> None:
    if subprocess.run([*tools, "which", program], capture_output=True, check=False).returncode != 0:
        rig.unavailable(f"{program} is not installed:")
    check_copy(engine, daemon, [*tools, "sh", "-ec"], COPIES[program])


@pytest.mark.engines("docker29")
@pytest.mark.parametrize("program", CURRENT)
def test_current_clients_push_what_docker_holds(engine: EngineAddress, daemon: Daemon, program: str) -> None:
    check_copy(engine, daemon, ["sh", "-ec"], CURRENT[program], str(rig.program(program)))


def check_copy(engine: EngineAddress, daemon: Daemon, shell: list[str], command: str, program: str = "") -> None:
    """Copy an image that the engine holds from the upstream registry to k3dreg, and see that it is kept."""
    with held(engine, daemon) as image:
        upstream = image.source.partition("/")[0]
        target = f"{daemon.host}/{image.repository}:t"
        command = command.format(
            program=program, source=image.source, target=target, host=daemon.host, upstream=upstream
        )
        done = subprocess.run([*shell, command], capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        check_kept(engine, daemon, image)


# The Docker client of the tests, which has BuildKit's, lives with these engines.
@pytest.mark.engines("docker29", "docker29-classic")
def test_buildx_builds_loads_and_pushes(engine: EngineAddress, daemon: Daemon) -> None:
    docker, content = Docker(engine.socket), os.urandom(300_000)
    repository = f"push-from-docker/{uuid.uuid4().hex[:12]}"
    own = f"127.0.0.1:{daemon.host.rpartition(':')[2]}/{repository}:t"
    socket = engine.inner_socket
    client = [*rig.setting("K3DREG_TEST_DOCKER").split(), "-H", f"unix://{socket}"]
    context = build_context({"Dockerfile": b"FROM scratch\nCOPY content /\n", "content": content})
    build = [*client, "buildx", "build", "--tag", own, "--tag", f"{repository}:t"]
    try:
        # The second build is the first one out of BuildKit's cache: the same image, which Docker holds by now.
        for more in (["--load"], ["--push"]):
            if "--push" in more:
                build = [*client, "buildx", "build", "--tag", own]
                assert content_of(from_registry(RegistryClient(daemon.host), repository), "t") == content
            done = subprocess.run([*build, *more, "-"], input=context, capture_output=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr.decode()
        check_kept(engine, daemon, Held("", repository, content, "", "", (own, f"{repository}:t")))
    finally:
        for name in (own, f"{repository}:t"):
            docker.remove(name)


@pytest.mark.engines("podman")
def test_podman_pushes_from_the_engine(engine: EngineAddress, daemon: Daemon, tools: list[str]) -> None:
    with held(engine, daemon) as image:
        socket = engine.inner_socket
        command = ["podman", "--url", f"unix://{socket}", "push", "--tls-verify=false", image.names[0]]
        done = subprocess.run([*tools, *command], capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()
        check_kept(engine, daemon, image)


@pytest.mark.engines("docker29")
def test_ko_pushes_what_docker_holds(engine: EngineAddress, daemon: Daemon, tmp_path: Path) -> None:
    """On a base that Docker alone holds; then the same image under a name by which Docker alone holds it."""
    docker, message = Docker(engine.socket), uuid.uuid4().hex
    pushed, held_too = (f"ko/{uuid.uuid4().hex[:12]}" for _ in range(2))
    with held(engine, daemon) as base:
        host, base_name = base.names[0].partition("/")[0], base.names[0]
        try:
            build_with_ko(tmp_path, f"{host}/{pushed}", base_name, message)
            docker.pull(f"{host}/{pushed}", "t")
            docker.tag(f"{host}/{pushed}:t", f"{host}/{held_too}", "t")
            build_with_ko(tmp_path, f"{host}/{held_too}", base_name, message)
        finally:
            for repository in (pushed, held_too):
                docker.remove(f"{host}/{repository}:t")
    daemon.stop()
    daemon.start()  # and Docker holds neither the base nor what was pushed
    for repository in (pushed, held_too):
        name = f"{daemon.host}/{repository}"
        docker.pull(name, "t")
        docker.remove(f"{name}:t")
    if not rig.nodes():
        rig.unavailable("K3DREG_TEST_NODES is not set:")
    node = Node(rig.nodes()[0])
    for repository in (pushed, held_too):
        with pulled(node, f"{daemon.host}/{repository}:t"):
            assert node.run(f"{daemon.host}/{repository}:t") == message


def test_a_manifest_is_pushed_by_digest(engine: EngineAddress, daemon: Daemon) -> None:
    """As containerd's pusher does for each manifest of an index: asked about by digest, with its one type."""
    with held(engine, daemon) as image:
        client = RegistryClient(daemon.host)
        top = client.head(f"/v2/{image.repository}/manifests/t").headers.get("docker-content-digest", image.digest)
        for digest in (top, image.child):
            asked = client.ask("HEAD", f"/v2/{image.repository}/manifests/{digest}", None, Accept=f"{MANIFEST}, */*")
            assert asked.status == 404


@pytest.mark.engines("docker29")
def test_a_part_that_docker_loses_between_head_and_put_is_not_lost(engine: EngineAddress, daemon: Daemon) -> None:
    with held(engine, daemon) as image:
        client = RegistryClient(daemon.host)
        path = f"/v2/{image.repository}"
        data = client.get(f"{path}/manifests/{image.child}").body
        document = json.loads(data)
        parts = {part["digest"]: b"" for part in (document["config"], *document["layers"])}
        for digest in parts:
            assert client.head(f"{path}/blobs/{digest}").status == 200
            parts[digest] = client.get(f"{path}/blobs/{digest}").body
        for name in image.names:
            Docker(engine.socket).remove(name)
        taken = client.push_manifest(image.repository, "t", data)
        if taken.status != 201:  # said so, and the tool begins again
            assert (taken.status, taken.code) == (400, "MANIFEST_BLOB_UNKNOWN")
            for blob in parts.values():
                client.push_blob(image.repository, blob)
            assert client.push_manifest(image.repository, "t", data).status == 201
        check_kept(engine, daemon, image)
