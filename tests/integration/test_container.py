"""The container image: built by a real engine, and started as k3d, compose and careful people start it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import PushedImage
from tests.integration.support.docker_api import Docker
from tests.integration.support.image import BASE, compose
from tests.integration.support.images import VERDICT
from tests.integration.support.k3d import SOCKET, Container, container, network, registry
from tests.integration.support.node import Node
from tests.integration.support.registry_client import RegistryClient
from tests.integration.support.rig import EngineAddress

# A classic store says how large an image is unpacked.
pytestmark = pytest.mark.engines("docker29-classic-spare")

# Bytes: 17 MB of it are gRPC, with which --link-layers asks containerd.
LARGEST = 170_000_000


@pytest.fixture
def cluster(docker: Docker) -> Iterator[str]:
    with network(docker, f"k3d-{uuid.uuid4().hex[:8]}") as name:
        yield name


def test_the_image_is_what_k3d_and_ctlptl_expect_of_a_registry(docker: Docker, k3dreg_image: str) -> None:
    found, base = docker.inspect(k3dreg_image), docker.inspect(BASE)
    assert found is not None
    assert base is not None
    config, inherited = found["Config"], base["Config"]
    print(f"the image has {found['Size'] / 1e6:.1f} MB, {base['Size'] / 1e6:.1f} of them its base")
    assert found["Size"] < LARGEST
    assert not config.get("Entrypoint")
    assert config["Cmd"] == ["k3dreg"]
    # BuildKit writes down the PATH that everybody has where a base says nothing.
    assert {variable.partition("=")[0] for variable in config["Env"]} <= {"PATH"} | {
        variable.partition("=")[0] for variable in inherited.get("Env") or ()
    }
    assert list(config["ExposedPorts"]) == ["5000/tcp"]
    assert list(config["Volumes"]) == ["/var/lib/k3dreg"]
    assert not config.get("Healthcheck")
    assert not config.get("User")


def point(node: Node, mirrors: dict[str, str]) -> list[Path]:
    """What k3d writes into a node: an endpoint for each of these registries, nothing behind it."""
    made = []
    for host, endpoint in mirrors.items():
        directory = node.address.directory / "certs.d" / (host.replace(":", "_") + "_")
        directory.mkdir(parents=True, exist_ok=True)
        text = f'server = "http://127.0.0.1:1"\n[host."http://{endpoint}"]\n  capabilities = ["pull", "resolve"]\n'
        (directory / "hosts.toml").write_text(text)
        made.append(directory / "hosts.toml")
    return made


@pytest.mark.parametrize("mode", ["with the cluster", "separate", "separate, enforcing its port"])
def test_a_cluster_pulls_and_runs_what_docker_holds_and_what_was_pushed_by_each_of_the_names(
    engine: EngineAddress,
    docker: Docker,
    k3dreg_image: str,
    one_node: Node,
    cluster: str,
    port: int,
    mode: str,
    small_image: PushedImage,
) -> None:
    name = "k3d-dev-registry" if mode == "with the cluster" else "k3d-dev"
    enforced = mode.endswith("port")
    body = registry(
        k3dreg_image,
        name,
        cluster,
        [f"{engine.inner_socket}:{SOCKET}"],
        port=port,
        cluster="dev" if mode == "with the cluster" else "",
        environment={"REGISTRY_PROXY_REMOTEURL": "*"} if mode == "with the cluster" else {},
        enforce_port_match=enforced,
    )
    held = small_image.pull_into(engine)
    mirrors: list[Path] = []
    with container(docker, name, body) as made:
        try:
            print(f"{mode}: it listened after {made.start():.2f} s")
            made.wait_for("images come from Docker")
            endpoint = f"{made.address(cluster)}:{port if enforced else 5000}"
            # The registry's own names and, for all others, `"*"`.
            one_node.clean()
            one_node.use_mirror(endpoint)
            mirrors = point(one_node, {f"{name}:{port}": endpoint, f"{name}:5000": endpoint})
            check_held(one_node, small_image)
            names = [f"localhost:{port}", f"{name}:{port}", *([] if enforced else [f"{name}:5000"])]
            check_pushed(held, one_node, port, names, small_image)
            # Nothing is kept, or compiled, where it would be lost, or could not be.
            assert [path for path in made.changes() if path != "/usr/sbin/docker-init"] == []
            made.check_log()
            status, seconds = made.stop()
            print(f"{mode}: it stopped in {seconds:.2f} s, status {status}")
            assert status in (0, 143), made.log()
        finally:
            for path in mirrors:
                path.unlink()
                path.parent.rmdir()
            held.remove(small_image.name)
            one_node.clean()


def check_held(node: Node, image: PushedImage) -> None:
    node.pull(image.name)
    assert node.run(image.name).split("\n")[:2] == [image.message, VERDICT]


def check_pushed(docker: Docker, node: Node, port: int, names: list[str], image: PushedImage) -> None:
    """`docker push localhost:PORT/...` on the host, and a node pulls it; then one that was tagged and never pushed."""
    repository = f"app-{uuid.uuid4().hex[:8]}"
    local = f"localhost:{port}/{repository}"
    docker.tag(image.name, local, "pushed")
    docker.push(local, "pushed")
    docker.remove(f"{local}:pushed")
    docker.tag(image.name, local, "tagged")
    try:
        for host in names:
            for tag in ("pushed", "tagged"):
                node.pull(f"{host}/{repository}:{tag}")
            assert node.run(f"{host}/{repository}:pushed").split("\n")[:2] == [image.message, VERDICT]
    finally:
        docker.remove(f"{local}:tagged")
    assert RegistryClient(f"127.0.0.1:{port}").get(f"/v2/{repository}/tags/list").json["tags"] == ["pushed"]


def test_a_newer_container_with_the_same_volume_has_what_was_pushed(
    engine: EngineAddress,
    docker: Docker,
    k3dreg_image: str,
    one_node: Node,
    cluster: str,
    port: int,
    small_image: PushedImage,
) -> None:
    """The older one is removed with its anonymous volumes, as `k3d registry delete` does."""
    name = f"k3d-{uuid.uuid4().hex[:8]}.localhost"
    volumes = [f"{engine.inner_socket}:{SOCKET}", f"{name}:/var/lib/k3dreg"]
    body = registry(k3dreg_image, name, cluster, volumes, port=port)
    held = small_image.pull_into(engine)
    local = f"localhost:{port}/app"
    try:
        with container(docker, name, body) as made:
            made.start()
            held.tag(small_image.name, local, "1")
            held.push(local, "1")
            held.remove(f"{local}:1")
        held.remove(small_image.name)
        with container(docker, name, {**body, "Labels": {**body["Labels"], "k3d.version": "v5.9.1"}}) as newer:
            newer.start()
            one_node.clean()
            one_node.use_mirror(f"{newer.address(cluster)}:5000")
            assert RegistryClient(f"127.0.0.1:{port}").get("/v2/app/tags/list").json["tags"] == ["1"]
            one_node.pull(f"{name}:5000/app:1")
            assert one_node.run(f"{name}:5000/app:1").split("\n")[:2] == [small_image.message, VERDICT]
            newer.check_log()
    finally:
        docker.call("DELETE", f"/volumes/{name}", query={"force": "1"})
        held.remove(small_image.name)
        one_node.clean()


def careful(image: str, engine: EngineAddress, port: int, **more: Any) -> dict[str, Any]:
    """Not root, nothing to write to but its volume, no capabilities, and the first process of its container."""
    group = Path(engine.socket).stat().st_gid
    return {
        "Image": image,
        "User": "65534",
        "Env": [f"REGISTRY_HTTP_ADDR=127.0.0.1:{port}"],
        "HostConfig": {
            "Binds": [f"{engine.inner_socket}:{SOCKET}"],
            "CapDrop": ["ALL"],
            "GroupAdd": [str(group)],
            "NetworkMode": "host",
            "ReadonlyRootfs": True,
            "SecurityOpt": ["no-new-privileges"],
        },
        **more,
    }


def test_nobody_with_the_sockets_group_runs_it_on_a_read_only_file_system_as_process_1(
    engine: EngineAddress, docker: Docker, k3dreg_image: str, one_node: Node, port: int, small_image: PushedImage
) -> None:
    held = small_image.pull_into(engine)
    with container(docker, f"k3dreg-{uuid.uuid4().hex[:8]}", careful(k3dreg_image, engine, port)) as made:
        try:
            print(f"read-only: it listened after {made.start():.2f} s")
            made.wait_for("images come from Docker")
            one_node.clean()
            one_node.use_mirror(f"127.0.0.1:{port}")
            check_held(one_node, small_image)
            client = RegistryClient(f"127.0.0.1:{port}")
            client.push_image("pushed/by-nobody", "t", b"a layer")
            assert client.get("/v2/pushed/by-nobody/tags/list").json["tags"] == ["t"]
            made.check_log()
            status, seconds = made.stop()
            print(f"read-only: it stopped in {seconds:.2f} s, status {status}")
            assert status == 0, made.log()
            made.start()
            assert client.get("/v2/pushed/by-nobody/tags/list").json["tags"] == ["t"]
        finally:
            held.remove(small_image.name)
            one_node.clean()


def test_compose_runs_it_beside_clusters(
    engine: EngineAddress, docker: Docker, k3dreg_image: str, one_node: Node, port: int, small_image: PushedImage
) -> None:
    variables = {
        "COMPOSE_PROJECT_NAME": f"k3dreg-{uuid.uuid4().hex[:8]}",
        "DOCKER_SOCKET": engine.inner_socket,
        "K3DREG_IMAGE": k3dreg_image,
        "K3DREG_PORT": str(port),
    }
    assert json.loads(compose(engine, "config", "--format", "json", **variables))["services"]["k3dreg"]["build"]
    held = small_image.pull_into(engine)
    try:
        compose(engine, "up", "--detach", "--no-build", **variables)
        made = Container(docker, compose(engine, "ps", "--quiet", **variables).strip())
        made.wait_for("images come from Docker")
        made.wait_for(f"this registry is also localhost:{port}")
        one_node.clean()
        one_node.use_mirror(f"127.0.0.1:{port}")
        check_held(one_node, small_image)
        check_pushed(held, one_node, port, [f"localhost:{port}"], small_image)
        made.check_log()
    finally:
        compose(engine, "down", "--volumes", **variables)
        held.remove(small_image.name)
        one_node.clean()


def test_it_waits_for_an_engine_that_it_may_not_use_and_says_so(
    engine: EngineAddress, docker: Docker, k3dreg_image: str, port: int
) -> None:
    body = careful(k3dreg_image, engine, port)
    body["HostConfig"].pop("GroupAdd")
    with container(docker, f"k3dreg-{uuid.uuid4().hex[:8]}", body) as made:
        made.start()
        made.wait_for("permission to its socket is denied")
        made.check_log()
