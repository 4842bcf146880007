"""Fixtures of the integration tests: the upstream registry, the images in it, and a daemon for each engine."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import pytest
from attrs import frozen

from tests.integration.support import docker_api, images, own, rig
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.image import build
from tests.integration.support.k3d import shared_with
from tests.integration.support.node import Node
from tests.integration.support.upstream import Json, Layer, Upstream

HERE = Path(__file__).parent

# Without the engine's files, what Docker holds comes from `docker save`: the source that always works.
EXPORTS_ONLY = ("--reader", "off")
# What most users have, and the oldest engine.  The other engines run the tests of what k3dreg relies on in an engine.
MATRIX = ("docker29", "docker29-classic", "docker20")
# Modules of tests that share no engine with others, so one process can have such a module to itself.
APART = (
    "test_beyond_conformance",
    "test_conformance",
    "test_crash",
    "test_daemon_process",
    "test_descriptors",
    "test_fuzz",
    "test_k3d",
    "test_push_limits",
    "test_stopping",
)
# Modules whose tests of one engine use a second one of its kind, so that another process can run them.
WITH_SECOND = (
    "test_direct_sources",
    "test_herd",
    "test_linking",
    "test_linking_disturbed",
    "test_linking_helper",
    "test_refresh",
    "test_slow_pull",
)
SECOND = "second"
# The groups that take longest begin first, so that at the end no process works alone.
LONGEST = ("docker29", "docker29-classic", "rig", SECOND, "docker20", "test_k3d")
# Fixtures whose tests use the engine with bridge networks, as those of `test_k3d` do.
BRIDGED_FIXTURES = {"cluster", "bridged"}
# Tests that change the first node's mirrors or remove its images, by fixtures and by modules.
ONE_NODE_FIXTURES = {"one_node", "mirrored"}
ONE_NODE_MODULES = ("test_node_pulls", "test_push_clients", "test_push_from_docker")
# Nothing is read in place, wherever the engine keeps its files.
READERS_ONLY = ("--reader", "stopped", "--docker-root", "/nonexistent", "--content-store", "/nonexistent")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "engines(*names): only these of the engines")
    config.addinivalue_line("markers", "every_node: it uses all nodes at once")
    config.addinivalue_line("markers", "every_engine: on all engines, and not on those of the matrix alone")
    config.addinivalue_line("markers", "xdist_group(name): one process runs all of the group; for pytest-xdist")
    config.addinivalue_line("markers", "nodes(*names): only these of the nodes")


# Before pytest-xdist's own, which reads the group.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A plain `pytest` without engines is for the unit tests: some of these need no engine, but all take their time.
    is_wanted = rig.is_there() or any("integration" in argument for argument in config.args)
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.integration)
            if not is_wanted:
                item.add_marker(pytest.mark.skip("not asked for"))
            # One process of pytest-xdist has an engine to itself (`--dist loadgroup`).
            item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item: pytest.Item) -> str:
    """Return what one process runs in order: a module that stands apart, an engine's tests, or "rig" for all others.

    Engines that tests kill, and Podman, belong to "rig".
    """
    if item.path.stem in APART:
        return item.path.stem
    if BRIDGED_FIXTURES.intersection(getattr(item, "fixturenames", ())):
        return "test_k3d"
    engine = getattr(item, "callspec", None) and item.callspec.params.get("engine")  # type: ignore[attr-defined]
    url = engine.url if engine else getattr(getattr(item, "cls", None), "url", "")
    if url and (second := rig.second()) and second.url == url:
        return SECOND
    return next((engine.name for engine in rig.engines() if engine.url == url), "rig")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let one process at a time use a node, as tests of all engines share the nodes; fixtures' ends are included."""
    with rig.alone(*_nodes_of(item)):
        return (yield)


def _nodes_of(item: pytest.Item) -> list[str]:
    """Return the names of the nodes that a test uses."""
    nodes = [node.name for node in rig.nodes()]
    fixtures = getattr(item, "fixturenames", ())
    if item.get_closest_marker("every_node"):
        return nodes
    if "node" in fixtures:
        return [item.callspec.params["node"].name]  # type: ignore[attr-defined]
    is_one = ONE_NODE_FIXTURES.intersection(fixtures) or item.path.stem in ONE_NODE_MODULES
    return nodes[:1] if is_one else []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin with the longest groups, and refuse to run where pytest-xdist does not see the groups.

    Without groups, two processes would use the same engines.  With `--no-loadscope-reorder` groups begin in the order
    of their first tests.
    """
    order = {name: number for number, name in enumerate(LONGEST)}
    session.items.sort(key=lambda item: order.get(_group(item), len(order)) if item.path.is_relative_to(HERE) else -1)
    there = [item for item in session.items if item.path.is_relative_to(HERE)]
    if hasattr(session.config, "workerinput") and not all("@" in item.nodeid for item in there):
        raise pytest.UsageError(
            "pytest-xdist does not see the groups of tests: use -n 0, or the pytest of pyproject.toml"
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`engine` stands for the engines that the test's marker names, else for the matrix; `node` for every node.

    One that is not there is named all the same: the test skips, or on the CI machine fails.
    """
    if "engine" in metafunc.fixturenames:
        there = {engine.name: engine for engine in [*rig.engines(), *rig.spares(), *rig.podmans()]}
        if metafunc.module.__name__.rpartition(".")[2] in WITH_SECOND and (second := rig.second()):
            there[second.name] = second
        marker = metafunc.definition.get_closest_marker("engines")
        every = metafunc.definition.get_closest_marker("every_engine") is not None
        names = marker.args if marker else _matrix([engine.name for engine in rig.engines()], every)
        if (person := rig.own()) and person.stands_for(names):
            names = [person.name]
        choice = [there.get(name, rig.EngineAddress(name, "")) for name in names]
        # Module scope: pytest puts the tests of one engine together, so they share a daemon.
        metafunc.parametrize("engine", choice, indirect=True, ids=names, scope="module")
    if "node" in metafunc.fixturenames:
        nodes = rig.nodes() or [rig.NodeAddress("node", Path(), Path())]
        only = metafunc.definition.get_closest_marker("nodes")
        nodes = [node for node in nodes if only is None or node.name in only.args]
        metafunc.parametrize("node", nodes, indirect=True, ids=[node.name for node in nodes], scope="function")


def _matrix(there: list[str], every: bool) -> Sequence[str]:
    """Return the engines of a test that names none; of a rig that has no engine of the matrix, all that are there."""
    if every:
        return there or MATRIX
    if os.environ.get("CI") == "true":
        return MATRIX
    return [name for name in MATRIX if name in there] or there or MATRIX


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> rig.EngineAddress:
    engine: rig.EngineAddress = request.param
    if not engine.url:
        if rig.own():
            rig.unavailable("the test is for other engines than K3DREG_TEST_ENGINE:")
        rig.unavailable(f"{engine.name} is not among K3DREG_TEST_ENGINES, K3DREG_TEST_SPARES and K3DREG_TEST_PODMAN:")
    return engine


@pytest.fixture(scope="session", autouse=True)
def own_engine() -> Iterator[None]:
    """Check, where a person's own Docker is used, that all tests together leave it as it was."""
    engine = rig.own()
    if engine is None:
        yield
        return
    docker = Docker(engine.socket)
    before = own.contents(docker)
    docker_api.OTHERS[engine.socket] = own.names(docker)
    yield
    changes = own.wait_until_it_has(docker, before)
    assert not changes, f"{engine.url} is not as it was before the tests:\n{changes}"


@pytest.fixture
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node that holds nothing."""
    address: rig.NodeAddress = request.param
    if address.socket == Path():
        rig.unavailable("K3DREG_TEST_NODES is not set:")
    node = Node(address)
    node.clean()
    yield node
    node.clean()


@pytest.fixture(scope="session")
def upstream(own_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    """The registry that images are pushed to and pulled from: the rig's, or beside one's own Docker a k3dreg alone."""
    engine = rig.own()
    if engine is None or os.environ.get("K3DREG_TEST_REGISTRY"):
        yield Upstream(rig.setting("K3DREG_TEST_REGISTRY"))
        return
    nothing = rig.EngineAddress("none", "unix:///nonexistent/docker.sock")
    with running(nothing, tmp_path_factory.mktemp("upstream")) as registry:
        yield Upstream(registry.host)
    own.remove_images_of(Docker(engine.socket), registry.host)


@pytest.fixture(scope="session")
def busybox() -> bytes:
    """A busybox that runs without libraries: the rig's, or beside one's own Docker this machine's."""
    found = own.static_busybox() if rig.own() and not os.environ.get("K3DREG_TEST_BUSYBOX") else None
    return found or Path(rig.setting("K3DREG_TEST_BUSYBOX")).read_bytes()


@frozen
class PushedImage:
    """An image in the upstream registry: `manifest` is its descriptor, `message` what it prints when it runs."""

    registry: str
    repository: str
    tag: str
    manifest: Json
    layers: tuple[Json, ...]
    message: str

    @property
    def name(self) -> str:
        return f"{self.registry}/{self.repository}:{self.tag}"

    def pull_into(self, engine: rig.EngineAddress) -> Docker:
        """`docker pull`, afresh.  Returns the engine's API."""
        docker = self.remove_from(engine)
        docker.pull(f"{self.registry}/{self.repository}", self.tag)
        return docker

    def remove_from(self, engine: rig.EngineAddress) -> Docker:
        docker = Docker(engine.socket)
        docker.remove(self.name)
        return docker


Push = Callable[[str, list[Layer], str], PushedImage]


@pytest.fixture(scope="session")
def push(upstream: Upstream) -> Push:
    """push(repository, layers, message): an image in the upstream registry, tagged `1`."""

    def push(repository: str, layers: list[Layer], message: str) -> PushedImage:
        manifest = upstream.push_image(repository, "1", layers, images.COMMAND)
        descriptors = tuple(layer.descriptor for layer in layers)
        return PushedImage(upstream.address, repository, "1", manifest, descriptors, message)

    return push


@pytest.fixture(scope="session")
def layered_image(push: Push, busybox: bytes) -> PushedImage:
    """Over 100 MB in seven layers."""
    message = "seven layers say hello"
    return push("k3dreg-test/layered", images.many_sided_layers(busybox, message), message)


@pytest.fixture(scope="session")
def large_image(push: Push, busybox: bytes) -> PushedImage:
    """250 MB in seven layers: large enough to break in the middle of it."""
    message = "a large image says hello"
    return push("k3dreg-test/large", images.large_layers(busybox, message, 5), message)


@pytest.fixture(scope="session")
def small_image(push: Push, busybox: bytes) -> PushedImage:
    """Two layers, one MB."""
    message = "a small image says hello"
    return push("k3dreg-test/small", images.small_layers(busybox, message), message)


@pytest.fixture(params=[READERS_ONLY, EXPORTS_ONLY], ids=["readers", "exports"])
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """A daemon's options for where bytes come from: through containers that never run, or exports only."""
    options: tuple[str, ...] = request.param
    return options


@pytest.fixture(scope="module")
def daemon(engine: rig.EngineAddress, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests of a module that use the same engine."""
    directory = tmp_path_factory.mktemp(f"k3dreg-{engine.name}")
    with running(engine, directory) as daemon:
        yield daemon
    shutil.rmtree(directory / "state")


@pytest.fixture
def one_node() -> Iterator[Node]:
    """The first node, for tests of what is not the node's."""
    nodes = rig.nodes()
    if not nodes:
        rig.unavailable("K3DREG_TEST_NODES is not set:")
    node = Node(nodes[0])
    node.clean()
    yield node
    node.clean()


@pytest.fixture
def mirrored(one_node: Node, daemon: Daemon) -> Node:
    """A node with nothing on it, whose mirror is the daemon of the engine."""
    one_node.clean()
    one_node.use_mirror(daemon.host)
    return one_node


@pytest.fixture(scope="module")
def docker(engine: rig.EngineAddress) -> Docker:
    return Docker(engine.socket)


@pytest.fixture(scope="module")
def k3dreg_image(engine: rig.EngineAddress) -> str:
    """k3dreg's own image, in the engine."""
    return build(engine)


@pytest.fixture
def shared(engine: rig.EngineAddress) -> Iterator[tuple[Path, str]]:
    """A directory that containers can mount: where it is here, and where it is for the engine."""
    with shared_with(engine) as directory:
        yield directory


@pytest.fixture
def port() -> int:
    """One of this machine's that is free."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
