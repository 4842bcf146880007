"""The whole way of an image in ECR: a node, k3dreg, AWS (moto's server), a real engine, and a registry that checks.

For the engines of the rig, a registry host of AWS is this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from tests.integration.support import rig
from tests.integration.support.daemon import Daemon
from tests.integration.support.docker_api import Docker
from tests.integration.support.node import Node
from tests.integration.support.private import basic, request
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress
from tests.integration.support.scripted import Scripted, an_image
from tests.integration.support.secrets import assert_nowhere

# What moto's AWS gives to everybody who asks for the token of this account.
TOKEN = "123456789012-auth-token"
SECRET_KEY = "a-secret-key-of-nobody"
REPOSITORY = "team/app"


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    """The URL of AWS."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def registry(engine: EngineAddress) -> Iterator[Scripted]:
    """Opens for AWS's token alone, and has an image that no engine has seen."""
    with Scripted() as registry:
        registry.login = f"AWS:{TOKEN}"
        registry.hold(REPOSITORY, an_image())
        yield registry
        Docker(engine.socket).remove(f"{namespace(registry)}/{REPOSITORY}:1")


def namespace(registry: Scripted) -> str:
    """The registry as images of it are named: HOST:PORT."""
    return f"{rig.setting('K3DREG_TEST_ECR_HOST')}:{registry.address.rpartition(':')[2]}"


@pytest.fixture
def daemon(engine: EngineAddress, aws: str, tmp_path: Path) -> Iterator[Daemon]:
    """Not started yet.  No home, no helper on the PATH: botocore, with keys from the environment."""
    (tmp_path / "run").mkdir()
    daemon = Daemon(engine, tmp_path / "run/state", tmp_path / "run/log")
    daemon.environment = {
        "HOME": str(tmp_path / "home"),
        "PATH": "/nowhere",
        "AWS_ENDPOINT_URL": aws,
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    (tmp_path / "home").mkdir()
    yield daemon
    daemon.check_log()
    daemon.stop()


def pull(daemon: Daemon, registry: Scripted) -> int:
    return Puller(daemon.host, namespace(registry)).image(REPOSITORY, "1")


def test_a_token_comes_from_aws_with_nothing_switched_on(
    engine: EngineAddress, registry: Scripted, daemon: Daemon, tmp_path: Path
) -> None:
    daemon.start()
    assert pull(daemon, registry) > 200_000
    assert registry.asked("GET .*/blobs/.* authorized")
    assert_nowhere([TOKEN, SECRET_KEY], daemon, tmp_path)


@pytest.mark.engines("docker29")
def test_from_awss_own_helper_where_it_is_installed(
    engine: EngineAddress, registry: Scripted, daemon: Daemon, tmp_path: Path
) -> None:
    helper = rig.setting("K3DREG_TEST_ECR_HELPER")
    daemon.environment["PATH"] = str(Path(helper).parent)
    daemon.start()
    assert pull(daemon, registry) > 200_000
    assert "botocore" not in daemon.log()
    assert_nowhere([TOKEN, SECRET_KEY], daemon, tmp_path)


@pytest.mark.engines("docker29", "docker20")
def test_without_a_token_the_pull_goes_on_as_an_ordinary_one_and_the_log_says_why(
    engine: EngineAddress, registry: Scripted, daemon: Daemon, tmp_path: Path
) -> None:
    daemon.environment["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1"
    daemon.start()
    path = f"/v2/{REPOSITORY}/manifests/1?ns={namespace(registry)}"
    response, body = request(daemon.host, "GET", path)
    assert (response.status, response.headers["WWW-Authenticate"].partition(" ")[0]) == (401, "Basic"), body
    daemon.wait_for("no credentials for")
    daemon.wait_for("Could not connect")
    # What a pod brings comes first, and is of use all the same.
    authorization = basic("AWS", TOKEN)
    assert request(daemon.host, "GET", path, {"Authorization": authorization})[0].status == 200
    assert_nowhere([TOKEN, SECRET_KEY], daemon, tmp_path, body)


@pytest.mark.engines("docker29", "docker26-classic")
@pytest.mark.nodes("node")
def test_a_node_pulls_it_without_any_secret_of_its_own(
    engine: EngineAddress, registry: Scripted, daemon: Daemon, node: Node
) -> None:
    daemon.start()
    node.use_mirror(daemon.host)
    node.pull(f"{namespace(registry)}/{REPOSITORY}:1")
