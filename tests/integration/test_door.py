"""Who may pull and push: real clients log in, are turned away, and never show k3dreg's password to another registry."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from k3dreg.commands.config_files import text_of
from tests.integration.support import rig
from tests.integration.support.clients import around
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.node import Node, PullFailed
from tests.integration.support.one_file import archive, content_of, from_registry
from tests.integration.support.private import (
    PrivateUpstream,
    SmallImage,
    basic,
    manifest_path,
    push_small_image,
    request,
)
from tests.integration.support.registry_client import Answer, RegistryClient, digest_of, manifest
from tests.integration.support.rig import EngineAddress
from tests.integration.test_push_clients import NOBODY

USER, PASSWORD = "anna", "pa:ss w0rd"
WRONG = "n0t-the-passw0rd"


class Client(RegistryClient):
    """One that shows k3dreg's password."""

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        return super().ask(method, path, body, **{"Authorization": basic(USER, PASSWORD), **headers})


@frozen
class Tools:
    """Programs of Debian's, where they are installed: `words` come before a command."""

    words: list[str]

    def run(self, command: str, *, fails: bool = False) -> str:
        """What a shell command says."""
        words = [*self.words, "sh", "-ec", command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode != 0) == fails, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def tools() -> Tools:
    return Tools(shlex.split(rig.setting("K3DREG_TEST_DOCKER"))[:-1])


@pytest.fixture(scope="module")
def htpasswd(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the real program."""
    path = tmp_path_factory.mktemp("users") / "htpasswd"
    path.write_text(tools.run(f"htpasswd -Bbn {USER} '{PASSWORD}'"))
    return path


@pytest.fixture(scope="module", params=[(), ("--anonymous-pull",)], ids=["login", "anonymous-pull"])
def registry(
    request: pytest.FixtureRequest, htpasswd: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """Without an engine: what is in it was pushed."""
    with running(NOBODY, tmp_path_factory.mktemp("door"), "--htpasswd", str(htpasswd), *request.param) as daemon:
        yield daemon
        for secret in (PASSWORD, WRONG, basic(USER, PASSWORD).split()[1]):
            assert secret not in daemon.log()


@pytest.fixture
def pulls_need_login(request: pytest.FixtureRequest) -> bool:
    return "anonymous" not in request.node.name


# The Docker client of the tests lives with these engines; they push in ways of their own.
@pytest.mark.engines("docker29", "docker29-classic")
def test_docker_logs_in_and_pushes(
    engine: EngineAddress, registry: Daemon, tools: Tools, pulls_need_login: bool
) -> None:
    docker, content = Docker(engine.socket), os.urandom(1_000_000)
    socket = engine.inner_socket
    repository = f"door/{uuid.uuid4().hex[:12]}"
    name = f"{registry.host}/{repository}"
    config = f"/tmp/{uuid.uuid4().hex}"
    client = f"docker --config {config} -H unix://{socket}"
    query = {"fromSrc": "-", "repo": name, "tag": "t"}
    docker.progress("POST", "/images/create", body=archive(content), query=query, content_type="application/x-tar")
    try:
        said = tools.run(f"{client} push {name}:t", fails=True)
        assert re.search("unauthorized|no basic auth credentials|authorization failed", said), said
        assert "401 Unauthorized" in tools.run(f"{client} login -u {USER} -p {WRONG} {registry.host}", fails=True)
        assert "Login Succeeded" in tools.run(f"{client} login -u {USER} -p '{PASSWORD}' {registry.host}")
        tools.run(f"{client} push {name}:t")
        docker.remove(f"{name}:t")
        tools.run(f"{client} pull {name}:t")
        docker.remove(f"{name}:t")
        # Docker's classic store looks at `/v2/` first, and then pulls nothing without a login.
        tools.run(f"{client} logout {registry.host}")
        tools.run(f"{client} pull {name}:t", fails=pulls_need_login or not engine.containerd_store)
        assert content_of(from_registry(Client(registry.host), repository), "t") == content
    finally:
        docker.remove(f"{name}:t")
        tools.run(f"rm -rf {config}")


def pushed(registry: Daemon) -> str:
    """The repository of an image that was pushed, tagged `t`."""
    repository, client = f"door/{uuid.uuid4().hex[:12]}", Client(registry.host)
    layer = archive(os.urandom(100_000))
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer)]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    packed = gzip.compress(layer, mtime=0)
    for data in (config, packed):
        client.push_blob(repository, data)
    assert client.push_manifest(repository, "t", manifest(config, [packed])).status == 201
    return repository


@pytest.mark.parametrize(
    ("program", "login", "pull", "push"),
    [
        (
            "crane",
            f"crane auth login -u {USER} -p '{PASSWORD}' {{host}}",
            "crane digest --insecure {host}/{source}:t",
            "crane copy --insecure {host}/{source}:t {host}/{source}-copy:t",
        ),
        (
            "skopeo",
            f"skopeo login --tls-verify=false -u {USER} -p '{PASSWORD}' {{host}}",
            "skopeo inspect --raw --tls-verify=false docker://{host}/{source}:t",
            "skopeo copy --src-tls-verify=false --dest-tls-verify=false"
            " docker://{host}/{source}:t docker://{host}/{source}-copy:t",
        ),
    ],
)
def test_tools_log_in_pull_and_push(
    registry: Daemon, tools: Tools, pulls_need_login: bool, program: str, login: str, pull: str, push: str
) -> None:
    around(tools.words, program)
    config = tools.run("mktemp -d").strip()
    home = f"export DOCKER_CONFIG={config} REGISTRY_AUTH_FILE={config}/config.json;"
    names = {"host": registry.host, "source": pushed(registry)}
    try:
        said = tools.run(home + push.format(**names), fails=True)
        assert re.search("unauthorized|k3dreg asks for a user and a password", said, re.IGNORECASE), said
        tools.run(home + pull.format(**names), fails=pulls_need_login)
        tools.run(home + login.format(**names))
        tools.run(home + pull.format(**names))
        tools.run(home + push.format(**names))
        assert Client(registry.host).get(f"/v2/{names['source']}-copy/manifests/t").status == 200
    finally:
        tools.run(f"rm -rf {config}")


def test_a_node_logs_in_with_a_pods_secret(registry: Daemon, node: Node, pulls_need_login: bool) -> None:
    image = f"localhost:{registry.host.rpartition(':')[2]}/{pushed(registry)}:t"
    node.use_mirror(registry.host)
    if pulls_need_login:
        for secret in ((), (USER, WRONG)):
            asked = registry.log().count(" 401, ")
            with pytest.raises(PullFailed, match=r"401|authorization failed|[Uu]nauthorized"):
                node.pull(image, *secret)
            # A node that is asked again shows the same again, five times.
            assert registry.log().count(" 401, ") - asked <= 2
    node.pull(image, USER, PASSWORD)
    node.clean()
    # A header that the node always sends leaves no room for a pod's secret, and needs none.
    name, _, port = registry.host.rpartition(":")
    where = ["--mode", "host", "--name", name, "--port", port]
    printed = text_of(["kind", *where, "--offline", "--auth", "certs.d/_default/hosts.toml"])
    file = node.address.directory / "certs.d/_default/hosts.toml"
    file.write_text(printed.replace('"Basic BASE64"', f'"{basic(USER, PASSWORD)}"'))
    node.pull(image)


@pytest.fixture(scope="module")
def private() -> PrivateUpstream:
    return PrivateUpstream()


@pytest.fixture
def image(engine: EngineAddress, private: PrivateUpstream) -> Iterator[SmallImage]:
    """An image in the private registry, that the engine does not have."""
    image = push_small_image(private, "door")
    yield image
    Docker(engine.socket).remove(image.name)


def head(daemon: Daemon, image: SmallImage, authorization: str = "") -> tuple[int, bool]:
    """The status of what a node asks first, and whether it is asked for credentials."""
    headers = {"Authorization": authorization} if authorization else {}
    response, _ = request(daemon.host, "HEAD", manifest_path(image), headers)
    return response.status, "WWW-Authenticate" in response.headers


@pytest.mark.engines("docker29", "docker20")
@pytest.mark.parametrize("anonymous", [False, True])
def test_our_password_opens_no_other_registry_and_a_pods_secret_still_does(
    engine: EngineAddress,
    private: PrivateUpstream,
    image: SmallImage,
    one_node: Node,
    anonymous: bool,
    tools: Tools,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    # The worst case: the same user and password in both places.
    users = tmp_path / "htpasswd"
    users.write_text(tools.run(f"htpasswd -Bbn {private.username} {private.password}"))
    more = ("--anonymous-pull",) if anonymous else ()
    with running(engine, tmp_path, "--htpasswd", str(users), *more) as daemon:
        assert head(daemon, image) == (401, True)
        assert head(daemon, image, private.authorization) == (401, False)
        assert Docker(engine.socket).inspect(image.name) is None
        # A user who was in the file since the start is never shown to another registry.
        users.write_text(tools.run(f"htpasswd -Bbn {USER} '{PASSWORD}'"))
        one_node.clean()
        one_node.use_mirror(daemon.host)
        daemon_knows(daemon, USER, PASSWORD)
        if anonymous:
            with pytest.raises(PullFailed):
                one_node.pull(image.name, private.username, private.password)
            assert Docker(engine.socket).inspect(image.name) is None
            # After a restart that password is the other registry's alone.
            daemon.stop()
            daemon.start()
            one_node.use_mirror(daemon.host)
            one_node.pull(image.name, private.username, private.password)
            assert head(daemon, image) == (200, False)
        else:
            with pytest.raises(PullFailed):
                one_node.pull(image.name, private.username, private.password)
            assert head(daemon, image, private.authorization) == (401, False)
            assert head(daemon, image, basic(USER, PASSWORD)) == (401, False)
        assert daemon.log().count("so it pulls it") <= 4


def daemon_knows(daemon: Daemon, username: str, password: str) -> None:
    """Returns when a change of the password file counts."""
    end = time.monotonic() + 20
    while request(daemon.host, "GET", "/v2/", {"Authorization": basic(username, password)})[0].status != 200:
        assert time.monotonic() < end, "the password file was not read again"
        time.sleep(0.1)
