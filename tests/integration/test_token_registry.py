"""Private images in a registry with a token server, as most registries have: through every engine, and to nodes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.support.daemon import running
from tests.integration.support.docker_api import Docker
from tests.integration.support.node import Node, PullFailed
from tests.integration.support.private import SmallImage, basic, manifest_path, push_small_image, request
from tests.integration.support.puller import Puller
from tests.integration.support.rig import EngineAddress
from tests.integration.support.secrets import assert_nowhere
from tests.integration.support.tokens import TokenServer, TokenUpstream, token_registry

RIGHT = basic(TokenServer.username, TokenServer.password)
WRONG_PASSWORD = "n0t-the-passw0rd"
WRONG = basic(TokenServer.username, WRONG_PASSWORD)


@pytest.fixture(scope="module", params=[True, False], ids=["a-token-for-everybody", "no-token-without-a-password"])
def private(request: pytest.FixtureRequest) -> Iterator[TokenUpstream]:
    with TokenServer(anonymous=request.param) as tokens, token_registry(tokens) as upstream:
        yield upstream


@pytest.fixture
def image(engine: EngineAddress, private: TokenUpstream) -> Iterator[SmallImage]:
    image = push_small_image(private, "token")
    yield image
    Docker(engine.socket).remove(image.name)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a login."""
    home = tmp_path / "home"
    (home / ".docker").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    return home


def test_a_token_is_got_with_the_clients_password_and_with_nothing_else(
    engine: EngineAddress, private: TokenUpstream, image: SmallImage, home: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    bodies = []
    with running(engine, directory) as daemon:
        for shown, status, challenge in (("", 401, "Basic"), (WRONG, 401, ""), (RIGHT, 200, "")):
            response, body = request(
                daemon.host, "GET", manifest_path(image), {"Authorization": shown} if shown else {}
            )
            assert (response.status, response.headers.get("WWW-Authenticate", "").partition(" ")[0]) == (
                status,
                challenge,
            ), body
            bodies.append(body)
        assert Puller(daemon.host, image.registry).image(image.repository, "1") > 400_000
        tokens = private.tokens
        assert_nowhere([tokens.password, WRONG_PASSWORD, *tokens.given], daemon, directory, *bodies)


@pytest.mark.engines("docker29", "docker20")
def test_an_identity_token_of_this_hosts_login_is_exchanged_for_one(
    engine: EngineAddress, private: TokenUpstream, image: SmallImage, home: Path, tmp_path: Path
) -> None:
    entry = {"auth": base64.b64encode(b"<token>:").decode(), "identitytoken": TokenServer.refresh_token}
    (home / ".docker/config.json").write_text(json.dumps({"auths": {image.registry: entry}}))
    directory = tmp_path / "run"
    directory.mkdir()
    with running(engine, directory) as daemon:
        assert Puller(daemon.host, image.registry).image(image.repository, "1") > 400_000
        assert_nowhere([private.tokens.refresh_token, *private.tokens.given], daemon, directory)


@pytest.mark.engines("docker29-classic")
def test_what_docker_cannot_give_is_fetched_with_a_token_too(
    engine: EngineAddress, private: TokenUpstream, image: SmallImage, home: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    path = manifest_path(image, image.digest)
    with running(engine, directory, "--origin-fallback") as daemon:
        for shown, status in (("", 401), (WRONG, 401), (RIGHT, 200)):
            response, body = request(daemon.host, "GET", path, {"Authorization": shown} if shown else {})
            assert response.status == status, body
        assert Puller(daemon.host, image.registry).image(image.repository, image.digest) > 400_000
        assert_nowhere([private.tokens.password, WRONG_PASSWORD, *private.tokens.given], daemon, directory)


@pytest.mark.engines("docker29")
def test_a_node_pulls_it_with_the_right_secret_only(
    engine: EngineAddress, private: TokenUpstream, image: SmallImage, home: Path, tmp_path: Path, node: Node
) -> None:
    with running(engine, tmp_path) as daemon:
        node.use_mirror(daemon.host)
        for password in ("", WRONG_PASSWORD):
            with pytest.raises(PullFailed):
                node.pull(image.name, TokenServer.username if password else "", password)
        node.pull(image.name, TokenServer.username, TokenServer.password)
        assert node.digest(image.name) == image.digest
