"""Private images, through every engine: with the client's credentials, with this host's, and without."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.node import Node, PullFailed
from tests.integration.support.private import (
    PrivateUpstream,
    SmallImage,
    basic,
    manifest_path,
    push_small_image,
    request,
)
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress
from tests.integration.support.secrets import assert_nowhere


@pytest.fixture(scope="module")
def private() -> PrivateUpstream:
    return PrivateUpstream()


@pytest.fixture
def image(engine: EngineAddress, private: PrivateUpstream) -> Iterator[SmallImage]:
    """An image in the private registry, that the engine is free of afterwards."""
    image = push_small_image(private, "private")
    yield image
    Docker(engine.socket).remove(image.name)


def head(daemon: Daemon, image: SmallImage, authorization: str = "") -> tuple[int, str]:
    """Status and challenge of what a node asks first."""
    headers = {"Authorization": authorization} if authorization else {}
    response, _ = request(daemon.host, "HEAD", manifest_path(image), headers)
    return response.status, response.headers.get("WWW-Authenticate", "")


def test_the_clients_credentials_open_a_private_image_and_nothing_else_does(
    engine: EngineAddress, private: PrivateUpstream, image: SmallImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    wrong = "n0t-the-passw0rd"
    with running(engine, tmp_path) as daemon:
        # What a node does: without credentials; with a pod's, because it was asked; each time anew.
        status, challenge = head(daemon, image)
        assert (status, challenge.partition(" ")[0]) == (401, "Basic")
        status, challenge = head(daemon, image, basic(private.username, wrong))
        assert status in (401, 403, 404)
        assert challenge == "", "a node that is asked again shows the same credentials again, and again"
        assert head(daemon, image)[0] == 401
        for malformed in ("Basic", "Basic !", f"Basic {'A' * 5}", "Bearer some-t0ken", "\xe4"):
            # As good as none: it is asked for some that can be used.
            assert head(daemon, image, malformed)[1].startswith("Basic")
        answers = [
            request(daemon.host, "GET", manifest_path(image), {"Authorization": shown})[1]
            for shown in ("", basic(private.username, wrong))
        ]
        assert head(daemon, image, private.authorization) == (200, "")
        assert Puller(daemon.host, image.registry).image(image.repository, "1") > 0
        # Docker has it now, so it is served to everybody: the README says so.
        assert head(daemon, image)[0] == 200
        assert_nowhere([wrong, private.authorization.split()[1], '"password": '], daemon, tmp_path, *answers)


@pytest.mark.parametrize("where", ["auths", "helper"])
def test_docker_login_on_this_host_counts(
    engine: EngineAddress,
    private: PrivateUpstream,
    image: SmallImage,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _log_in(engine, private, image, where, tmp_path, monkeypatch, 200)


@pytest.mark.engines("docker29")
def test_docker_auth_config_counts_before_a_login(
    engine: EngineAddress, private: PrivateUpstream, image: SmallImage, tmp_path: Path
) -> None:
    def entry(password: str) -> dict[str, dict[str, dict[str, str]]]:
        login = base64.b64encode(f"{private.username}:{password}".encode()).decode()
        return {"auths": {image.registry: {"auth": login}}}

    (tmp_path / "home/.docker").mkdir(parents=True)
    (tmp_path / "home/.docker/config.json").write_text(json.dumps(entry("n0t-the-passw0rd")))
    (tmp_path / "run").mkdir()
    daemon = Daemon(engine, tmp_path / "run/state", tmp_path / "run/log")
    config = json.dumps(entry(private.password))
    daemon.environment |= {"HOME": str(tmp_path / "home"), "DOCKER_AUTH_CONFIG": config}
    daemon.start()
    try:
        assert head(daemon, image) == (200, "")
        assert_nowhere([entry(private.password)["auths"][image.registry]["auth"]], daemon, tmp_path / "run")
    finally:
        daemon.stop()


@pytest.mark.engines("docker29")
@pytest.mark.parametrize("where", ["broken helper", "another host"])
def test_a_login_that_is_of_no_use_leaves_the_image_to_the_clients_credentials(
    engine: EngineAddress,
    private: PrivateUpstream,
    image: SmallImage,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _log_in(engine, private, image, where, tmp_path, monkeypatch, 401)


def _log_in(
    engine: EngineAddress,
    private: PrivateUpstream,
    image: SmallImage,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    entry = {"auth": base64.b64encode(f"{private.username}:{private.password}".encode()).decode()}
    config: dict[str, object] = {"auths": {image.registry if where == "auths" else "ghcr.io": entry}}
    if "helper" in where:
        config["credHelpers"] = {image.registry: "k3dreg-test"}
        answer = json.dumps({"Username": private.username, "Secret": private.password})
        helper = tmp_path / "bin" / "docker-credential-k3dreg-test"
        helper.parent.mkdir()
        helper.write_text("#!/bin/sh\n" + ("exit 3\n" if where == "broken helper" else f"echo '{answer}'\n"))
        helper.chmod(0o755)
        monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    home = tmp_path / "home"
    (home / ".docker").mkdir(parents=True)
    (home / ".docker" / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("HOME", str(home))
    directory = tmp_path / "run"
    directory.mkdir()
    with running(engine, directory) as daemon:
        assert head(daemon, image)[0] == status
        assert ("docker-credential-k3dreg-test failed" in daemon.log()) == (where == "broken helper")
        assert_nowhere([entry["auth"], '"Secret"'], daemon, directory)


@pytest.mark.nodes("node")
def test_a_node_pulls_a_private_image_with_the_right_secret_only(
    engine: EngineAddress,
    private: PrivateUpstream,
    image: SmallImage,
    node: Node,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    with running(engine, tmp_path) as daemon:
        node.use_mirror(daemon.host)
        with pytest.raises(PullFailed):
            node.pull(image.name)
        with pytest.raises(PullFailed):
            node.pull(image.name, private.username, "wrong")
        # A herd of the same wrong question did not become a herd of pulls.
        assert daemon.log().count("so it pulls it") <= 4
        node.pull(image.name, private.username, private.password)
        assert node.digest(image.name).startswith("sha256:")
