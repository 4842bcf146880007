"""Layers linked into a node while images, nodes and rights go away: an ordinary pull follows each time."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Push, PushedImage
from tests.integration.support import images, rig
from tests.integration.support.clusters import NODE_IMAGE, pull_as_kubelet_does
from tests.integration.support.daemon import Daemon, running
from tests.integration.support.docker_api import Docker
from tests.integration.support.images import VERDICT, LayerMaker
from tests.integration.support.linked import (
    LinkCommand,
    Mirrored,
    blobs_sent,
    build,
    kind_node,
    leases,
    listing_of,
    prepare_kind,
    rich_image,
    snapshots,
)
from tests.integration.support.upstream import LAYER_TAR, Layer, digest_of

both_stores = pytest.mark.engines("docker29", "docker29-classic")
# Docker's own limit is 125 layers.
LAYERS = 120
FILES = 100_000
MESSAGE = "linked layers say hello"


@pytest.fixture(scope="module")
def deep_image(push: Push, busybox: bytes) -> PushedImage:
    """120 layers, of which one has no file and most have one."""
    sums: dict[str, str] = {}
    layers = [images.base_layer(busybox, sums), LayerMaker(sums).layer()]
    while len(layers) < LAYERS - 1:
        maker = LayerMaker(sums)
        maker.file(f"deep/{len(layers)}", str(len(layers)).encode())
        layers.append(maker.layer(compress=None))
    return push("k3dreg-test/deep", [*layers, images.last_layer(MESSAGE, sums)], MESSAGE)


@pytest.fixture(scope="module")
def crowded_image(push: Push, busybox: bytes) -> PushedImage:
    """A layer with 100,000 files, between two others."""
    sums: dict[str, str] = {}
    layers = [images.base_layer(busybox, sums), _crowd(), images.last_layer(MESSAGE, sums)]
    return push("k3dreg-test/crowded", layers, MESSAGE)


def _crowd() -> Layer:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(FILES):
            entry = tarfile.TarInfo(f"crowd/{number % 100}/{number}")
            entry.size = 1
            tar.addfile(entry, io.BytesIO(b"x"))
    return Layer(buffer.getvalue(), LAYER_TAR, digest_of(buffer.getvalue()))


@pytest.fixture
def daemon(engine: rig.EngineAddress, tmp_path: Path) -> Iterator[Daemon]:
    """A k3dreg that links nothing by itself: the tests call `k3dreg link`."""
    prepare_kind(engine)
    with running(engine, tmp_path, "--reader", "off", "--docker-root", str(engine.directory / "data")) as daemon:
        yield daemon


@pytest.fixture
def kind(engine: rig.EngineAddress, daemon: Daemon) -> Iterator[Mirrored]:
    """A node of kind, whose mirror is the daemon."""
    with kind_node(engine) as node:
        node.use_mirror(daemon.host)
        yield node


def begun(engine: rig.EngineAddress, image: PushedImage, node: Mirrored) -> LinkCommand:
    """Link an image's layers into a node by hand; return when some are linked and others are not."""
    linking = LinkCommand(engine, image.name, node.name)
    linking.wait_for_layers(node, 5)
    return linking


def check_pull(node: Mirrored, image: PushedImage, incomplete: int = 0) -> None:
    """Pull the image, and check in a container that every file is right.

    At most `incomplete` layers that were being linked may be in the node.  k3dreg may first have to repair an image
    that was removed a moment ago: Docker then keeps its layers and not its blobs (moby#49473).
    """
    pull_as_kubelet_does(node, image.name, 120)
    assert node.run(image.name).split("\n")[:2] == [image.message, VERDICT]
    active = [name for name, kind in snapshots(node).items() if kind == "Active"]
    assert len(active) <= incomplete
    assert all(name.startswith("k3dreg-link") for name in active)


def forget(node: Mirrored) -> None:
    """Remove all images and layers from the node."""
    for lease in leases(node):
        node.ctr("leases", "rm", "--sync", lease)
    node.clean()
    end = time.monotonic() + 20
    while snapshots(node):
        assert time.monotonic() < end
        node.ctr("content", "prune", "references")


@contextlib.contextmanager
def pod(node: Mirrored, image: str) -> Iterator[Callable[..., str]]:
    """Run a container; yields a function that runs commands in it."""
    name = f"k3dreg-test-{uuid.uuid4().hex[:12]}"
    node.ctr("run", "-d", "--net-host", image, name, "/bin/busybox", "sleep", "600")

    lines = [line.split() for line in node.ctr("tasks", "ls").splitlines()]
    pid = next(words[1] for words in lines if words[0] == name)

    def run(*words: str) -> str:
        # runc's exec does not find the root directory of a pod whose engine is in a plain chroot.
        command = [*node._enter(), "nsenter", f"--target={pid}", "--mount", "--pid", "--root", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        yield run
    finally:
        node.ctr("tasks", "kill", "-s", "SIGKILL", name)
        node.ctr("tasks", "rm", "-f", name)
        node.ctr("containers", "rm", name)


def remove_all(docker: Docker, image: str) -> None:
    """`docker rmi -f`, and what `docker system prune -f --volumes` does."""
    docker.remove(image)
    for kind in ("containers", "networks", "volumes", "images"):
        docker.ask("POST", f"/{kind}/prune")


@both_stores
def test_as_many_layers_as_an_image_can_have(
    engine: rig.EngineAddress, kind: Mirrored, daemon: Daemon, deep_image: PushedImage
) -> None:
    check_linked(engine, kind, daemon, deep_image, f"linked {LAYERS} layers, ")


@pytest.mark.engines("docker29")
def test_a_layer_of_a_hundred_thousand_files(
    engine: rig.EngineAddress, kind: Mirrored, daemon: Daemon, crowded_image: PushedImage
) -> None:
    check_linked(engine, kind, daemon, crowded_image, "linked 3 layers, 100,")
    found = kind.run(crowded_image.name, "/bin/busybox", "sh", "-c", "find /crowd -type f | wc -l")
    assert int(found) == FILES


def check_linked(engine: rig.EngineAddress, node: Mirrored, daemon: Daemon, image: PushedImage, told: str) -> None:
    """Link the whole image, and pull it."""
    docker = image.pull_into(engine)
    status, said = LinkCommand(engine, image.name, node.name).ended()
    assert status == 0, said
    assert told in said
    logged = len(daemon.log())
    check_pull(node, image)
    assert len(blobs_sent(daemon.log()[logged:])) == 1
    docker.remove(image.name)


@both_stores
def test_docker_removes_the_image_while_pods_run(
    engine: rig.EngineAddress, kind: Mirrored, layered_image: PushedImage
) -> None:
    docker = layered_image.pull_into(engine)
    status, said = LinkCommand(engine, layered_image.name, kind.name).ended()
    assert status == 0, said
    check_pull(kind, layered_image)
    everything = images.COMMAND
    with pod(kind, layered_image.name) as run:
        remove_all(docker, layered_image.name)
        for told in (run(*everything), kind.run(layered_image.name)):
            assert told.split("\n")[:2] == [layered_image.message, VERDICT]
        # Docker has it anew, unpacked into other files; the node's are still those of before.
        layered_image.pull_into(engine)
        status, said = LinkCommand(engine, layered_image.name, kind.name).ended()
        assert (status, said) == (0, f"{kind.name}: nothing to link; it had {len(layered_image.layers)} layers\n")
        assert run(*everything).split("\n")[:2] == [layered_image.message, VERDICT]
        remove_all(docker, layered_image.name)
        assert run(*everything).split("\n")[:2] == [layered_image.message, VERDICT]


@both_stores
def test_docker_removes_the_image_while_it_is_linked(
    engine: rig.EngineAddress, kind: Mirrored, deep_image: PushedImage
) -> None:
    docker = deep_image.pull_into(engine)
    linking = begun(engine, deep_image, kind)
    remove_all(docker, deep_image.name)
    linking.ended()
    # What was linked is complete, and the rest is pulled.
    deep_image.pull_into(engine)
    check_pull(kind, deep_image)
    docker.remove(deep_image.name)


@both_stores
def test_the_node_is_restarted_and_removed_while_layers_are_linked(
    engine: rig.EngineAddress, kind: Mirrored, deep_image: PushedImage
) -> None:
    docker = deep_image.pull_into(engine)
    linking = begun(engine, deep_image, kind)
    docker.ask("POST", f"/containers/{kind.name}/restart", t="0")
    status, said = linking.ended()
    assert status == 1, said
    node = restarted(docker, kind)
    # The command could not remove what it had begun.
    check_pull(node, deep_image, incomplete=1)
    forget(node)
    linking = begun(engine, deep_image, node)
    docker.ask("DELETE", f"/containers/{kind.name}", force="1", v="1")
    status, said = linking.ended()
    assert status == 1, said
    docker.remove(deep_image.name)


def restarted(docker: Docker, node: Mirrored) -> Mirrored:
    """The node's container, which has another process now; wait for its containerd."""
    node.pid = docker.ask("GET", f"/containers/{node.name}/json")["State"]["Pid"]
    again = Mirrored(node)
    end = time.monotonic() + 30
    while not again.address.socket.exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    return again


@both_stores
def test_k3dreg_is_killed_while_it_links(engine: rig.EngineAddress, kind: Mirrored, deep_image: PushedImage) -> None:
    docker = deep_image.pull_into(engine)
    linking = begun(engine, deep_image, kind)
    linking.kill()
    status, said = LinkCommand(engine, deep_image.name, kind.name).ended()
    assert status == 0, said
    found = re.search(r"linked (\d+) layers.*it had (\d+) layers", said)
    assert found, said
    assert int(found[1]) + int(found[2]) == LAYERS
    # The layer that was being linked is no layer, and goes with the lease of the killed command.
    check_pull(kind, deep_image, incomplete=1)
    forget(kind)
    docker.remove(deep_image.name)


# -- a full disk ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def full(engine: rig.EngineAddress, free: int) -> Iterator[None]:
    """Leave so many inodes of the engine's file system free; a directory and a hard link in a tmpfs need one each."""
    filler = engine.directory / "data" / "filler"
    filler.mkdir()
    try:
        for number in range(os.statvfs(filler).f_ffree - free):
            (filler / str(number)).touch()
        yield
    finally:
        shutil.rmtree(filler)


@pytest.mark.engines("docker29-spare-small")
def test_the_disk_is_full_before_and_while_layers_are_linked(engine: rig.EngineAddress, kind: Mirrored) -> None:
    """Nothing is left of a layer that did not fit, and the next pull brings it, or the next linking."""
    with rich_image(engine) as name:
        print(f"ordinary pull: {kind.pull(name):.2f} s")
        expected = listing_of(kind, name)
        for free in (0, 10, 5_000):
            forget(kind)
            with full(engine, free):
                status, said = LinkCommand(engine, name, kind.name).ended()
            assert status == 1, f"{free} inodes: {said}"
            assert re.search("the disk of .* is full", said), f"{free} inodes: {said}"
            assert "Active" not in snapshots(kind).values()
            kind.pull(name)
            assert listing_of(kind, name) == expected
        # A layer that fitted is a layer, and the next linking goes on with the others.
        forget(kind)
        with full(engine, 5_000):
            LinkCommand(engine, name, kind.name).ended()
        status, said = LinkCommand(engine, name, kind.name).ended()
        assert status == 0, said
        assert re.search("linked 7 layers, .*; it had 1 layer", said), said
        kind.pull(name)
        assert listing_of(kind, name) == expected


# -- rights that k3dreg lacks -----------------------------------------------------------------------------------------


@both_stores
def test_without_a_right_it_is_said_and_nothing_is_wrong(engine: rig.EngineAddress, kind: Mirrored) -> None:
    """Without the last, a root that owns all files links them all the same."""
    with rich_image(engine) as name:
        kind.pull(name)
        expected = listing_of(kind, name)
        for capability, reason in (
            ("sys_admin", "k3dreg may not set extended attributes"),
            ("sys_ptrace", "k3dreg may not look at Docker's process"),
            ("chown", "linking failed: Operation not permitted"),
            ("fowner", "linking failed: Operation not permitted"),
            ("dac_override", ""),
        ):
            forget(kind)
            without = ["setpriv", "--bounding-set", f"-{capability}"]
            status, said = LinkCommand(engine, name, kind.name, before=without).ended()
            assert (status, reason in said) == (int(bool(reason)), True), f"without {capability}: {said}"
            print(f"pull: {kind.pull(name):.2f} s")
            found = listing_of(kind, name)
            if not engine.containerd_store:
                # Docker's classic store leaves these out of a layer's tar, and has them in its own containers.
                found, expected = (
                    [re.sub(r'"user.note": "31"', "", each) for each in both] for both in (found, expected)
                )
            assert found == expected, capability


# -- programs that look at the number of links ------------------------------------------------------------------------

CRON = f"""
FROM {NODE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends cron && rm -f /etc/cron.d/* \\
 && echo '@reboot root touch /run/it-ran' > /etc/cron.d/job
ENTRYPOINT []
CMD ["sh", "-c", "cron && sleep 3 && ls /run/it-ran"]
"""


@both_stores
def test_cron_runs_jobs_in_pods_and_in_dockers_containers(engine: rig.EngineAddress, kind: Mirrored) -> None:
    """Debian's cron reads no file that has more than one link."""
    docker, name = Docker(engine.socket), f"k3dreg-test-cron-{uuid.uuid4().hex[:8]}"
    build(engine, name, CRON)
    status, said = LinkCommand(engine, name, kind.name).ended()
    assert status == 0, said
    kind.pull(f"docker.io/library/{name}:latest")
    assert kind.run(f"docker.io/library/{name}:latest") == "/run/it-ran\n"
    body = {"Image": name, "HostConfig": {"NetworkMode": "host"}}
    made = docker.ask("POST", "/containers/create", body)["Id"]
    docker.ask("POST", f"/containers/{made}/start")
    ended = docker.ask("POST", f"/containers/{made}/wait")
    docker.ask("DELETE", f"/containers/{made}", force="1")
    assert ended["StatusCode"] == 0
    docker.remove(name)
