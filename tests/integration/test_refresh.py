"""`--refresh` and `k3dreg refresh`: a tag that moved in its registry, on real engines, with real registries."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve, frozen

from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.node import Node
from tests.integration.support.private import (
    Door,
    PrivateUpstream,
    SmallImage,
    manifest_path,
    push_small_image,
    request,
    retag,
)
from tests.integration.support.puller import ACCEPT, Puller
from tests.integration.support.rig import EngineAddress
from tests.integration.support.scripted import Reply, Scripted, an_image, an_index, refusal
from tests.integration.support.secrets import assert_nowhere
from tests.integration.support.upstream import Upstream
from tests.integration.test_tools import Said, k3dreg

pytestmark = pytest.mark.engines("docker29", "docker29-classic", "docker20")

# Each request asks, as the answer before it is older.
ALWAYS = ("--refresh", "*=1s")
HOURLY = ("--refresh", "*")


@frozen
class Tag:
    """A tag of an image, as a daemon serves it and as its engine has it."""

    engine: EngineAddress
    image: SmallImage

    @property
    def docker(self) -> Docker:
        return Docker(self.engine.socket)

    def served(self, daemon: Daemon, authorization: str = "") -> str:
        """What a client gets: the ID of an image."""
        time.sleep(1.1)  # so that the last answer is too old
        headers = {"Accept": ACCEPT} | ({"Authorization": authorization} if authorization else {})
        response, body = request(daemon.host, "GET", manifest_path(self.image), headers)
        assert response.status == 200, body
        if self.engine.containerd_store:
            return response.headers["Docker-Content-Digest"]
        return str(json.loads(body)["config"]["digest"])

    def held(self) -> str:
        """What Docker has: the ID of an image."""
        found = self.docker.inspect(self.image.name)
        return str(found["Id"]) if found else ""

    def has(self, digest: str) -> bool:
        """Whether Docker's image is the one that has this digest in its registry."""
        found = self.docker.inspect(self.image.name)
        assert found is not None
        return f"{self.image.registry}/{self.image.repository}@{digest}" in found["RepoDigests"]

    def build(self, **query: str) -> str:
        """Give the tag to an image that is built here; its ID."""
        body = {"Dockerfile": b"FROM scratch\nCOPY Dockerfile /\n"}
        self.docker.build(self.image.name, body)
        return self.held()

    def refresh(self, daemon: Daemon, **environment: str) -> Said:
        """Run `k3dreg refresh` beside the daemon."""
        state = daemon.wait_for(r"state in (\S+)")[1]
        return k3dreg("refresh", "--docker", self.engine.url, "--state-dir", state, self.image.name, **environment)

    def why(self, daemon: Daemon) -> Said:
        """Run `k3dreg why` beside the daemon."""
        state = daemon.wait_for(r"state in (\S+)")[1]
        return k3dreg("why", "--docker", self.engine.url, "--state-dir", state, *HOURLY, self.image.name)


@pytest.fixture
def tag(engine: EngineAddress, upstream: Upstream) -> Iterator[Tag]:
    tag = Tag(engine, push_small_image(upstream, "refresh"))
    yield tag
    tag.docker.remove(tag.image.name)


def test_a_tag_that_moved_is_pulled_again_also_after_a_crash(tag: Tag, upstream: Upstream, tmp_path: Path) -> None:
    with running(tag.engine, tmp_path, *ALWAYS) as daemon:
        old = tag.served(daemon)
        assert tag.served(daemon) == old
        moved = retag(upstream, tag.image.repository)
        new = tag.served(daemon)
        assert (new != old, new == tag.held(), tag.has(moved)) == (True, True, True)
        assert daemon.log().count("Docker pulled") == 2, "one pull for each image"
        daemon.kill()
        daemon.start()
        moved = retag(upstream, tag.image.repository)
        newer = tag.served(daemon)
        assert (newer != new, newer == tag.held(), tag.has(moved)) == (True, True, True)


def test_an_index_that_moved_is_pulled_again(engine: EngineAddress, tmp_path: Path) -> None:
    with Scripted() as registry, running(engine, tmp_path, *ALWAYS) as daemon:
        tag = Tag(engine, SmallImage(registry.address, "k3dreg-test/index", ""))
        arm = (an_image(architecture="arm64"), "arm64")
        first, second = (an_index([(an_image(), "amd64"), arm]) for _ in range(2))
        registry.hold(tag.image.repository, first)
        old = tag.served(daemon)
        assert tag.served(daemon) == old
        registry.hold(tag.image.repository, second)
        new = tag.served(daemon)
        assert (new != old, new == tag.held(), tag.has(second.root)) == (True, True, True)
        assert tag.served(daemon) == new
        assert daemon.log().count("Docker pulled") == 2
        tag.docker.remove(tag.image.name)


def test_the_registry_is_asked_once_an_hour_however_many_ask(engine: EngineAddress, tmp_path: Path) -> None:
    with Scripted() as registry, running(engine, tmp_path, *HOURLY) as daemon:
        tag = Tag(engine, SmallImage(registry.address, "k3dreg-test/hourly", ""))
        registry.hold(tag.image.repository, an_image())
        old = tag.served(daemon)
        registry.seen.clear()
        registry.hold(tag.image.repository, an_image())
        assert [tag.served(daemon) for _ in range(3)] == [old] * 3
        assert registry.seen == []
        said = tag.why(daemon)
        assert said.status == 0
        assert f"{registry.address} has the same image for it, by its answer of " in said.out
        assert registry.seen == []
        tag.docker.remove(tag.image.name)


@pytest.mark.engines("docker29")
def test_a_reload_applies_it(tag: Tag, upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "k3dreg.toml"
    file.write_text("")
    with running(tag.engine, tmp_path, "--config", str(file)) as daemon:
        old = tag.served(daemon)
        moved = retag(upstream, tag.image.repository)
        assert tag.served(daemon) == old
        for text, expected in (('refresh = ["*=1s"]', moved), ("", moved)):
            file.write_text(text)
            since = len(daemon.log())
            daemon.send(signal.SIGHUP)
            daemon.wait_for("changed refresh", since=since)
            assert tag.served(daemon) == expected
            retag(upstream, tag.image.repository)


def test_what_was_built_here_is_never_replaced(tag: Tag, upstream: Upstream, tmp_path: Path) -> None:
    with running(tag.engine, tmp_path, *ALWAYS) as daemon:
        tag.served(daemon)
        built = tag.build()
        retag(upstream, tag.image.repository)
        assert [tag.served(daemon) for _ in range(2)] == [built] * 2
        assert tag.held() == built
        assert "is not refreshed: nothing shows that Docker's image came from" in daemon.log()
        said = tag.why(daemon)
        assert (said.status, "it is not refreshed: nothing shows" in said.out) == (0, True), said.out
        said = tag.refresh(daemon)
        assert (said.status, "not replaced: nothing shows that Docker's image came from" in said.out) == (1, True)
        assert tag.held() == built


def test_what_was_tagged_here_is_never_replaced(tag: Tag, upstream: Upstream, tmp_path: Path) -> None:
    other = push_small_image(upstream, "refresh-other")
    tag.docker.pull(f"{other.registry}/{other.repository}", "1")
    tag.docker.tag(other.name, f"{tag.image.registry}/{tag.image.repository}", "1")
    with running(tag.engine, tmp_path, *ALWAYS) as daemon:
        tagged = tag.held()
        assert [tag.served(daemon) for _ in range(2)] == [tagged] * 2
        assert tag.held() == tagged
    tag.docker.remove(other.name)


def test_what_docker_pulled_by_itself_is_replaced_where_docker_says_so(
    tag: Tag, upstream: Upstream, tmp_path: Path
) -> None:
    tag.docker.pull(f"{tag.image.registry}/{tag.image.repository}", "1")
    old = tag.held()
    moved = retag(upstream, tag.image.repository)
    with running(tag.engine, tmp_path, *ALWAYS) as daemon:
        served = tag.served(daemon)
        assert (served != old, tag.has(moved)) == (tag.engine.containerd_store,) * 2, daemon.log()


@pytest.mark.engines("docker29")
def test_what_buildkit_made_here_and_docker_pushed_there_is_never_replaced(
    tag: Tag, upstream: Upstream, tmp_path: Path
) -> None:
    query = {"t": tag.image.name, "version": "2"}
    body = b'FROM scratch\nLABEL from="here"\n'
    tag.docker.progress("POST", "/build", body=body, query=query, content_type="application/x-tar")
    tag.docker.push(f"{tag.image.registry}/{tag.image.repository}", "1")
    built = tag.held()
    retag(upstream, tag.image.repository)
    with running(tag.engine, tmp_path, *ALWAYS) as daemon:
        assert tag.served(daemon) == built
        assert tag.held() == built


def test_a_registry_that_is_gone_costs_one_line_and_no_pod(
    engine: EngineAddress, upstream: Upstream, tmp_path: Path
) -> None:
    with running(engine, tmp_path, *ALWAYS) as daemon:
        with Door(upstream.address) as door:
            tag = Tag(engine, evolve(push_small_image(upstream, "refresh"), registry=door.address))
            old = tag.served(daemon)
            retag(upstream, tag.image.repository)
        assert [tag.served(daemon) for _ in range(3)] == [old] * 3
        assert daemon.log().count(f"{tag.image.name} is served as Docker has it: ") == 1
        assert "does not say whether it has moved" in daemon.log()
        said = tag.refresh(daemon)
        assert (said.status, "onnection refused" in said.out) == (1, True), said.out
        assert tag.held() == old
        tag.docker.remove(tag.image.name)


def test_a_private_registry_is_asked_with_the_credentials_of_a_pull(
    engine: EngineAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, home, directory = PrivateUpstream(), tmp_path / "home", tmp_path / "run"
    (home / ".docker").mkdir(parents=True)
    directory.mkdir()
    monkeypatch.setenv("HOME", str(home))
    tag = Tag(engine, push_small_image(private, "refresh"))
    with running(engine, directory, *ALWAYS) as daemon:
        old = tag.served(daemon, private.authorization)
        retag(private, tag.image.repository)
        assert tag.served(daemon) == old, "without credentials"
        daemon.wait_for("does not say whether it has moved: .* 401")
        assert tag.refresh(daemon).status == 1
        new = tag.served(daemon, private.authorization)
        assert (new != old, new == tag.held()) == (True, True)
        login = {"auths": {tag.image.registry: {"auth": private.authorization.removeprefix("Basic ")}}}
        (home / ".docker/config.json").write_text(json.dumps(login))
        moved = retag(private, tag.image.repository)
        said = tag.refresh(daemon, DOCKER_CONFIG=str(home / ".docker"))
        assert (said.status, tag.has(moved)) == (0, True), said
        secrets = [private.password]
        assert private.password not in said.out.replace(tag.image.name, "")
        assert_nowhere(secrets, daemon, directory)
        tag.docker.remove(tag.image.name)


def test_a_registry_that_limits_requests_is_left_alone(engine: EngineAddress, tmp_path: Path) -> None:
    with Scripted() as registry, running(engine, tmp_path, *ALWAYS) as daemon:
        tag = Tag(engine, SmallImage(registry.address, "k3dreg-test/limited", ""))
        registry.hold(tag.image.repository, an_image())
        old = tag.served(daemon)
        registry.hold(tag.image.repository, an_image())
        registry.rules.append(("manifests", refusal(429, "TOOMANYREQUESTS", "you have reached your pull rate limit")))
        registry.seen.clear()
        assert [tag.served(daemon) for _ in range(3)] == [old] * 3
        assert registry.seen == ["HEAD /v2/k3dreg-test/limited/manifests/1"]
        assert "does not say whether it has moved" in daemon.log()
        tag.docker.remove(tag.image.name)


def test_a_registry_that_is_silent_does_not_hold_up_a_pod(engine: EngineAddress, tmp_path: Path) -> None:
    with Scripted() as registry, running(engine, tmp_path, *ALWAYS) as daemon:
        tag = Tag(engine, SmallImage(registry.address, "k3dreg-test/silent", ""))
        registry.hold(tag.image.repository, an_image())
        old = tag.served(daemon)
        moved = an_image()
        registry.hold(tag.image.repository, moved)
        registry.rules.append(("HEAD .*manifests", Reply(after=7, once=True)))
        assert tag.served(daemon) == old
        daemon.wait_for("is served as Docker has it: its registry has not answered for 5 s")
        time.sleep(3)
        tag.served(daemon)
        assert tag.has(moved.root), "the answer that came late counts"
        tag.docker.remove(tag.image.name)


def test_a_pull_that_fails_does_not_keep_a_pod_from_starting(engine: EngineAddress, tmp_path: Path) -> None:
    with Scripted() as registry, running(engine, tmp_path, *ALWAYS) as daemon:
        tag = Tag(engine, SmallImage(registry.address, "k3dreg-test/failing", ""))
        registry.hold(tag.image.repository, an_image())
        old = tag.served(daemon)
        registry.hold(tag.image.repository, an_image())
        registry.rules.append(("blobs", refusal(404, "BLOB_UNKNOWN", "blob unknown to registry")))
        assert [tag.served(daemon) for _ in range(3)] == [old] * 3
        assert tag.held() == old
        assert daemon.log().count("has moved in its registry, so Docker pulls it again") == 1
        assert "could not pull" in daemon.log()
        tag.docker.remove(tag.image.name)


@pytest.mark.engines("docker29")
def test_a_slow_pull_of_a_moved_tag_is_answered_as_any_pull(engine: EngineAddress, tmp_path: Path) -> None:
    with Scripted() as registry, running(engine, tmp_path, *ALWAYS) as daemon:
        tag = Tag(engine, SmallImage(registry.address, "k3dreg-test/slow-refresh", ""))
        registry.hold(tag.image.repository, an_image())
        old = tag.served(daemon)
        moved = an_image()
        registry.hold(tag.image.repository, moved)
        registry.rules.append((f"blobs/{moved.layers[0]}", Reply(after=14)))
        began = time.monotonic()
        assert tag.served(daemon) == moved.root
        assert time.monotonic() - began < 13, "the answer waits for the end of the pull"
        assert tag.held() == old
        puller = Puller(daemon.host, registry.address)
        assert puller.image(tag.image.repository, moved.root) > 200_000
        assert tag.held() == moved.root
        tag.docker.remove(tag.image.name)


def test_the_command_refreshes_beside_a_daemon_that_knows_the_image_then(
    tag: Tag, upstream: Upstream, tmp_path: Path
) -> None:
    with running(tag.engine, tmp_path) as daemon:
        old = tag.served(daemon)
        said = tag.refresh(daemon)
        assert (said.status, said.err, f"Docker has what {tag.image.registry} has" in said.out) == (0, "", True)
        for _ in range(2):
            moved = retag(upstream, tag.image.repository)
            assert tag.served(daemon) == old, "the daemon was not asked to"
            said = tag.refresh(daemon)
            assert (said.status, f"moved: Docker pulled {moved}" in said.out) == (0, True), said
            assert tag.has(moved)
            old = tag.served(daemon)
            assert old == tag.held()


@pytest.mark.engines("docker29", "docker29-classic")
@pytest.mark.nodes("node")
def test_a_node_gets_the_new_image(tag: Tag, upstream: Upstream, node: Node, tmp_path: Path) -> None:
    with running(tag.engine, tmp_path, *ALWAYS) as daemon:
        node.use_mirror(daemon.host)
        node.pull(tag.image.name)
        before = node.digest(tag.image.name)
        time.sleep(1.1)
        moved = retag(upstream, tag.image.repository)
        node.pull(tag.image.name)
        assert (node.digest(tag.image.name) != before, tag.has(moved)) == (True, True)
        if tag.engine.containerd_store:
            assert node.digest(tag.image.name) == moved
