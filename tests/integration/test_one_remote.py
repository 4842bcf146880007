"""k3d's `proxy` of a registry: one registry's images alone, with the credentials for it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import PushedImage
from tests.integration.support.daemon import Daemon
from tests.integration.support.docker_api import Docker
from tests.integration.support.node import Node, PullFailed
from tests.integration.support.private import PrivateUpstream, SmallImage, push_small_image
from tests.integration.support.puller import Puller
from tests.integration.support.registry_client import RegistryClient
from tests.integration.support.rig import EngineAddress

pytestmark = pytest.mark.engines("docker29", "docker29-classic", "docker20")


@pytest.fixture(scope="module")
def private() -> PrivateUpstream:
    return PrivateUpstream()


@pytest.fixture
def image(engine: EngineAddress, private: PrivateUpstream) -> Iterator[SmallImage]:
    """An image in the private registry, that the engine does not have."""
    image = push_small_image(private, "remote")
    yield image
    Docker(engine.socket).remove(image.name)


@pytest.fixture
def proxy(engine: EngineAddress, private: PrivateUpstream, tmp_path: Path) -> Iterator[Daemon]:
    """As k3d starts it, with `remoteURL`, `username` and `password`."""
    daemon = Daemon(engine, tmp_path / "state", tmp_path / "log")
    daemon.environment = {
        "HOME": str(tmp_path / "nobody"),
        "REGISTRY_PROXY_REMOTEURL": f"http://{private.address}",
        "REGISTRY_PROXY_USERNAME": private.username,
        "REGISTRY_PROXY_PASSWORD": private.password,
    }
    daemon.start()
    yield daemon
    daemon.check_log()
    assert private.authorization.split()[1] not in daemon.log()
    daemon.stop()


def test_a_node_needs_no_secret_for_the_registry_and_another_is_not_asked(
    engine: EngineAddress, proxy: Daemon, one_node: Node, image: SmallImage, small_image: PushedImage
) -> None:
    small_image.pull_into(engine)  # there, and another registry's all the same
    one_node.clean()
    one_node.use_mirror(proxy.host)
    one_node.pull(image.name)
    with pytest.raises(PullFailed):
        one_node.pull(small_image.name)
    proxy.wait_for(f"{small_image.registry}/{small_image.repository}:1 404, .* images of {image.registry} only")
    # Nor by its name in the path, though Docker holds it.
    path = f"{small_image.registry}/{small_image.repository}"
    assert RegistryClient(proxy.host).get(f"/v2/{path}/manifests/1").status == 404
    host, docker = f"{uuid.uuid4().hex}.example", Docker(engine.socket)
    docker.tag(small_image.name, f"{host}/app", "1")
    try:
        assert RegistryClient(proxy.host).get(f"/v2/{host}/app/manifests/1").status == 404
    finally:
        docker.remove(f"{host}/app:1")


def test_who_names_no_registry_means_that_one(engine: EngineAddress, proxy: Daemon, image: SmallImage) -> None:
    assert Puller(proxy.host).image(image.repository, "1") > 0
    assert Docker(engine.socket).inspect(image.name) is not None


def test_pushes_go_on(engine: EngineAddress, proxy: Daemon, image: SmallImage) -> None:
    client = RegistryClient(proxy.host)
    # A client looks first whether the name is taken, whatever the remote thinks of that name.
    assert client.head("/v2/team/app/manifests/t").status == 404
    client.push_image("team/app", "t", b"layer")
    assert client.head("/v2/team/app/manifests/t").status == 200
    # What was pushed comes before the remote's.
    client.push_image(image.repository, "1", b"another layer")
    assert client.head(f"/v2/{image.repository}/manifests/1").headers["docker-content-digest"] != image.digest
