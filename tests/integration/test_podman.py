"""Podman's Docker-compatible service as the engine: what differs from Docker makes no difference to a node."""

from __future__ import annotations

import json
import shlex
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import PushedImage
from tests.integration.support import image, k3d, rig
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker, build_context
from tests.integration.support.images import VERDICT, printing
from tests.integration.support.node import Node, PullFailed
from tests.integration.support.private import PrivateUpstream, manifest_path, push_small_image, request
from tests.integration.support.puller import Puller
from tests.integration.support.registry_client import RegistryClient
from tests.integration.support.rig import EngineAddress
from tests.integration.support.upstream import Upstream

pytestmark = pytest.mark.engines("podman")

DOCKERFILE = (
    f"FROM scratch\nCOPY busybox /bin/busybox\nCOPY message /message\nCMD {json.dumps(printing('/message'))}\n"
).encode()


def test_the_log_says_that_it_is_podman(daemon: Daemon) -> None:
    daemon.wait_for(r"images come from Podman 5\.\d")


def test_a_node_pulls_and_runs_what_podman_holds_and_one_export_serves_all_of_them(
    engine: EngineAddress, daemon: Daemon, mirrored: Node, layered_image: PushedImage
) -> None:
    docker = layered_image.pull_into(engine)
    try:
        for _ in range(2):
            mirrored.clean()
            seconds = mirrored.pull(layered_image.name)
            print(f"{mirrored.name} pulled {layered_image.name} from Podman in {seconds:.1f} s")
        assert mirrored.run(layered_image.name).split("\n")[:2] == [layered_image.message, VERDICT]
        assert daemon.log().count(f"exporting {layered_image.name} (") == 1
    finally:
        docker.remove(layered_image.name)
    daemon.check_log()


def test_podman_pulls_what_only_the_registry_has(
    engine: EngineAddress, daemon: Daemon, mirrored: Node, small_image: PushedImage
) -> None:
    docker = small_image.remove_from(engine)
    mirrored.pull(small_image.name)
    assert mirrored.run(small_image.name).split("\n")[:2] == [small_image.message, VERDICT]
    assert docker.inspect(small_image.name) is not None
    docker.remove(small_image.name)
    with pytest.raises(PullFailed):
        mirrored.pull(f"{small_image.registry}/k3dreg-test/nowhere:1")
    assert Puller(daemon.host, small_image.registry).manifest("k3dreg-test/nowhere", "1").status == 404
    daemon.check_log()


def podman(engine: EngineAddress, *words: str, stdin: bytes = b"") -> None:
    """The `podman` command, as a client of the service."""
    tools = shlex.split(rig.setting("K3DREG_TEST_DOCKER"))[:-1]
    socket = engine.inner_socket
    command = [*tools, "podman", "--remote", "--url", f"unix://{socket}", *words]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture
def directory() -> Iterator[tuple[Path, str]]:
    """One to build in: where it is here, and where it is for the `podman` command."""
    words = shlex.split(rig.setting("K3DREG_TEST_DOCKER"))
    root = Path(words[1] if words[0] == "chroot" else "/")
    name = f"k3dreg-{uuid.uuid4().hex[:12]}"
    path = root / "tmp" / name
    path.mkdir()
    yield path, f"/tmp/{name}"
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def test_an_image_that_podman_built_is_pulled_by_the_name_it_was_given_and_a_rebuilt_one_is_fresh(
    engine: EngineAddress, daemon: Daemon, mirrored: Node, busybox: bytes, directory: tuple[Path, str]
) -> None:
    """`podman build -t my-image` makes `localhost/my-image`; a pod's `my-image` is `docker.io/library/my-image`."""
    here, there = directory
    (here / "Dockerfile").write_bytes(DOCKERFILE)
    (here / "busybox").write_bytes(busybox)
    (here / "busybox").chmod(0o755)
    try:
        for _ in range(2):
            message = str(uuid.uuid4())
            (here / "message").write_text(message)
            podman(engine, "build", "--quiet", "--tag", "my-image", there)
            assert Docker(engine.socket).inspect("docker.io/library/my-image:latest") is None
            for name in ("docker.io/library/my-image:latest", "localhost/my-image:latest"):
                mirrored.pull(name)
                assert mirrored.run(name) == message
        assert "my-image" in RegistryClient(daemon.host).get("/v2/_catalog?n=1000").json["repositories"]
        assert RegistryClient(daemon.host).get("/v2/my-image/tags/list").json["tags"] == ["latest"]
    finally:
        Docker(engine.socket).remove("localhost/my-image:latest")
    daemon.check_log()


def test_an_image_that_was_built_through_dockers_api_is_pulled(
    engine: EngineAddress, daemon: Daemon, mirrored: Node, busybox: bytes
) -> None:
    docker, message = Docker(engine.socket), str(uuid.uuid4())
    files = {"Dockerfile": DOCKERFILE, "busybox": busybox, "message": message.encode()}
    body = build_context(files)
    try:
        docker.progress("POST", "/build", body=body, query={"t": "my-app"}, content_type="application/x-tar")
        mirrored.pull("docker.io/library/my-app:latest")
        assert mirrored.run("docker.io/library/my-app:latest") == message
    finally:
        docker.remove("my-app:latest")
    daemon.check_log()


def test_k3dreg_runs_as_a_container_of_podmans_made_as_k3d_makes_it(
    engine: EngineAddress, port: int, one_node: Node, small_image: PushedImage
) -> None:
    """With `DOCKER_HOST` k3d takes Podman's socket for Docker's; its network is the machine's here."""
    builder = next((spare for spare in rig.spares() if spare.name == "docker29-classic-spare"), None)
    if builder is None:
        rig.unavailable("docker29-classic-spare is not among K3DREG_TEST_SPARES:")
    docker = small_image.pull_into(engine)
    with Docker(builder.socket).open("GET", "/images/get", query={"names": image.build(builder)}) as saved:
        docker.call("POST", "/images/load", body=saved.read(), content_type="application/x-tar")
    name = f"k3d-{uuid.uuid4().hex[:8]}"
    volumes = [f"{engine.inner_socket}:{k3d.SOCKET}"]
    body = k3d.registry(image.IMAGE, name, "host", volumes, port=port, enforce_port_match=True)
    try:
        with k3d.container(docker, name, body) as made:
            print(f"in Podman it listened after {made.start():.2f} s")
            made.wait_for(r"images come from Podman 5\.\d")
            one_node.clean()
            one_node.use_mirror(f"127.0.0.1:{port}")
            one_node.pull(small_image.name)
            assert one_node.run(small_image.name).split("\n")[:2] == [small_image.message, VERDICT]
            client = RegistryClient(f"127.0.0.1:{port}")
            client.push_image("pushed/to-podman", "t", b"a layer")
            assert client.get("/v2/pushed/to-podman/tags/list").json["tags"] == ["t"]
            made.check_log()
            status, seconds = made.stop()
            assert status in (0, 143), made.log()
            assert seconds < 5
    finally:
        docker.remove(image.IMAGE)
        docker.remove(small_image.name)


def test_a_digest_is_a_404_with_podmans_advice_and_comes_from_the_registry_if_that_is_wanted(
    engine: EngineAddress, daemon: Daemon, mirrored: Node, small_image: PushedImage, tmp_path: Path
) -> None:
    docker, digest = small_image.pull_into(engine), small_image.manifest["digest"]
    name = f"{small_image.registry}/{small_image.repository}@{digest}"
    try:
        answer = Puller(daemon.host, small_image.registry).manifest(small_image.repository, digest)
        assert answer.status == 404
        daemon.wait_for("Podman does not keep an image as its registry had it")
        with running(engine, tmp_path, "--origin-fallback") as falling_back:
            mirrored.use_mirror(falling_back.host)
            mirrored.pull(name)
            assert mirrored.digest(name) == digest
            assert mirrored.run(name).split("\n")[:2] == [small_image.message, VERDICT]
    finally:
        docker.remove(small_image.name)
    daemon.check_log()


def test_a_private_image_takes_the_clients_credentials(engine: EngineAddress, daemon: Daemon) -> None:
    private = PrivateUpstream()
    image = push_small_image(private, "podman")

    def status(**headers: str) -> int:
        return request(daemon.host, "HEAD", manifest_path(image), headers)[0].status

    try:
        assert status() == 401
        assert status(Authorization=private.authorization) == 200
    finally:
        Docker(engine.socket).remove(image.name)
    assert private.password not in json.dumps(daemon.log().replace(private.address, ""))
    daemon.check_log()


def test_what_podman_pushes_is_pulled_by_a_node(
    engine: EngineAddress, daemon: Daemon, mirrored: Node, upstream: Upstream, small_image: PushedImage
) -> None:
    docker = small_image.pull_into(engine)
    repository = f"pushed/{uuid.uuid4().hex[:12]}"
    name = f"{daemon.host}/{repository}"
    try:
        docker.tag(small_image.name, name, "t")
        docker.push(name, "t")
    finally:
        docker.remove(f"{name}:t")
        docker.remove(small_image.name)
    assert docker.inspect(f"{name}:t") is None
    mirrored.pull(f"{name}:t")
    assert mirrored.run(f"{name}:t").split("\n")[:2] == [small_image.message, VERDICT]
    daemon.check_log()
