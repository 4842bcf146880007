"""Linking into a node, with two containerds that keep snapshots in directories of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from k3dreg.clusters.nodes import Node, NodeMount
from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.formats.protobuf import Message
from k3dreg.linking.linker import Linker, LinkingResult
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.oci.digest import Digest

pytest.importorskip("grpc")
from tests.fakes.containerd import FakeContainerd, Refusal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
CHAIN = [Digest.of(str(number).encode()) for number in range(4)]
FILES = 3  # in each layer


def fill(directory: Path, name: str) -> None:
    (directory / "d").mkdir()
    for number in range(FILES):
        (directory / "d" / f"{name}-{number}").write_bytes(name.encode() * 10)


class Rig:
    """Docker's containerd, which has an image of four layers, and a node's, which has nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("docker", "node", "engine"):
            (root / name).mkdir()
        self.docker = FakeContainerd(root / "docker")
        self.node = FakeContainerd(root / "node")
        parent = ""
        for chain in CHAIN:
            fill(self.docker.committed(str(chain), parent), chain.short)
            parent = str(chain)
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(root / "engine/docker.sock"))
        self.listening.listen()
        self.info = EngineInfo(
            "",
            "29",
            (1, 51),
            ImageStore.CONTAINERD,
            "overlayfs",
            str(root / "engine"),
            containerd_address=self.docker.socket,
            containerd_namespace="moby",
        )
        mount = NodeMount(str(root / "node"), str(root / "node"))
        self.there = Node("0123", "k3d-x-agent-0", os.getpid(), self.node.socket, (mount,))
        self.linker = Linker(str(root / "engine/docker.sock"), "me")

    def close(self) -> None:
        self.docker.stop()
        self.node.stop()
        self.listening.close()

    def link(self, repository: str = "app", **more: object) -> LinkingResult:
        return self.linker.link(self.info, self.there, repository, CHAIN, **more)  # type: ignore[arg-type]

    def is_linked(self, chain: Digest) -> bool:
        here, there = (each.snapshots[str(chain)].directory for each in (self.docker, self.node))
        names = [os.path.relpath(file, here) for file in here.rglob("*") if file.is_file()]
        return len(names) == FILES and all((here / name).samefile(there / name) for name in names)

    def classic(self) -> None:
        """Move Docker's layers into a classic store."""
        for chain in CHAIN:
            about = self.root / f"engine/image/overlay2/layerdb/sha256/{chain.hex}"
            about.mkdir(parents=True)
            (about / "cache-id").write_text(chain.short)
            shutil.copytree(
                self.docker.snapshots[str(chain)].directory, self.root / f"engine/overlay2/{chain.short}/diff"
            )
            self.docker.snapshots[str(chain)].directory = self.root / f"engine/overlay2/{chain.short}/diff"
        self.info = evolve(self.info, store=ImageStore.CLASSIC, driver="overlay2", containerd_address="")


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> None:
    """Take the place of the check for all unit tests: gRPC opens descriptors of its own that it keeps."""


def opened() -> Iterator[str]:
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            yield os.readlink(f"/proc/self/fd/{descriptor}")


@pytest.fixture
def rig() -> Iterator[Rig]:
    # The path of a UNIX socket has 107 bytes at most.
    with tempfile.TemporaryDirectory() as directory:
        rig = Rig(Path(directory))
        yield rig
        rig.close()
        assert not [path for path in opened() if path.startswith((directory, "/snapshots"))]


def test_all_layers_are_linked(rig: Rig) -> None:
    done = rig.link()
    assert (done.layers, done.there, done.missing, done.files, done.copied) == (4, 0, 0, 12, 0)
    assert done.saved == 4 * FILES * 120
    assert all(map(rig.is_linked, CHAIN))
    assert [each.parent for each in rig.node.snapshots.values()] == ["", *map(str, CHAIN[:-1])]
    assert rig.node.of_kind("active") == []


def test_what_was_linked_is_kept_for_a_day_by_one_lease(rig: Rig) -> None:
    rig.link()
    [(name, lease)] = rig.node.leases.items()
    assert name.startswith("k3dreg-link-me-")
    assert lease.snapshots == {str(each) for each in CHAIN}
    expires = time.mktime(time.strptime(lease.labels["containerd.io/gc.expire"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert abs(expires - time.time() - 86400) < 60
    rig.node.collect()
    assert len(rig.node.snapshots) == 4


def test_docker_keeps_no_trace(rig: Rig) -> None:
    before = dict(rig.docker.snapshots)
    rig.link()
    assert rig.docker.snapshots == before
    assert rig.docker.leases == {}


def test_docker_holds_the_layers_meanwhile(rig: Rig) -> None:
    held: list[bool] = []

    def remove_image(message: Message) -> None:
        rig.docker.in_use.clear()
        rig.docker.collect()
        held.append(all(str(each) in rig.docker.snapshots for each in CHAIN))

    rig.node.before["Commit"] = remove_image
    assert rig.link().layers == 4
    assert held == [True] * 4


def test_a_second_time_nothing_is_linked_and_the_lease_is_a_new_one(rig: Rig) -> None:
    rig.link()
    before = set(rig.node.leases)
    done = rig.link()
    assert (done.layers, done.there, done.missing, done.files) == (0, 4, 0, 0)
    assert len(rig.node.leases) == 1
    assert not before & set(rig.node.leases)


def test_each_repository_has_a_lease_of_its_own(rig: Rig) -> None:
    rig.link("app")
    rig.link("other")
    assert len(rig.node.leases) == 2


def test_only_what_the_node_lacks_is_linked(rig: Rig) -> None:
    own = rig.node.committed(str(CHAIN[0]))
    done = rig.link()
    assert (done.layers, done.there) == (3, 1)
    assert rig.node.snapshots[str(CHAIN[0])].directory == own
    assert not list(own.iterdir())


def test_layers_above_those_that_docker_has_unpacked_are_missing(rig: Rig) -> None:
    for chain in CHAIN[2:]:
        del rig.docker.snapshots[str(chain)]
    done = rig.link()
    assert (done.layers, done.missing) == (2, 2)
    assert rig.node.of_kind("committed") == list(map(str, CHAIN[:2]))
    assert rig.node.of_kind("active") == []


def test_a_node_that_has_layers_which_docker_has_not(rig: Rig) -> None:
    parent = ""
    for chain in CHAIN:
        rig.node.committed(str(chain), parent)
        parent = str(chain)
    rig.docker.snapshots.clear()
    done = rig.link()
    assert (done.layers, done.there, done.missing) == (0, 4, 0)


def test_an_image_that_docker_has_not_unpacked_leaves_nothing(rig: Rig) -> None:
    rig.docker.snapshots.clear()
    done = rig.link()
    assert (done.layers, done.there, done.missing) == (0, 0, 4)
    assert not rig.node.snapshots
    assert not rig.node.leases


def test_an_image_of_one_layer(rig: Rig) -> None:
    done = rig.linker.link(rig.info, rig.there, "app", CHAIN[:1])
    assert done.layers == 1
    assert rig.is_linked(CHAIN[0])


def test_a_pull_that_is_faster_wins(rig: Rig) -> None:
    def commit(message: Message) -> None:
        if message.text(2) == str(CHAIN[1]) and str(CHAIN[1]) not in rig.node.snapshots:
            rig.node.committed(str(CHAIN[1]), str(CHAIN[0]))

    rig.node.before["Commit"] = commit
    done = rig.link()
    assert (done.layers, done.there) == (3, 1)
    assert rig.node.of_kind("active") == []


@pytest.mark.parametrize("step", range(1, 9))
def test_wherever_it_is_stopped_complete_layers_stay_and_nothing_else(rig: Rig, step: int) -> None:
    calls = 0

    def proceed() -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise CannotLink("it takes longer than the node waits")

    with pytest.raises(CannotLink, match="longer"):
        rig.link(proceed=proceed)
    assert rig.node.of_kind("active") == []
    assert all(rig.is_linked(Digest.parse(each)) for each in rig.node.snapshots)
    assert len(rig.node.leases) == (1 if rig.node.snapshots else 0)
    assert len(list((rig.node.root / "snapshots").iterdir() if rig.node.snapshots else ())) == len(rig.node.snapshots)
    assert rig.docker.leases == {}
    had = len(rig.node.snapshots)
    done = rig.link()
    assert (done.layers, done.there) == (4 - had, had)


@pytest.mark.parametrize("method", ["Prepare", "Commit", "Usage"])
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("shutting down", "containerd of k3d-x-agent-0 refuses {}: shutting down"),
        ("mkdir /var/x: no space left on device", "the disk of the containerd of k3d-x-agent-0 is full"),
    ],
    ids=["refusal", "full disk"],
)
def test_a_refusal_of_the_node_is_told(rig: Rig, method: str, answer: str, told: str) -> None:
    def refuse(message: Message) -> None:
        raise Refusal("UNAVAILABLE", answer)

    rig.node.before[method] = refuse
    with pytest.raises(CannotLink, match=told.format(method)):
        rig.link()
    assert rig.node.of_kind("active") == []
    assert rig.docker.leases == {}


def test_what_a_killed_run_left_is_removed_at_the_next_start(rig: Rig) -> None:
    def fail(message: Message) -> None:
        raise Refusal("UNAVAILABLE", "k3dreg was killed")

    for name in ("Commit", "Remove", "Delete"):
        rig.node.before[name] = fail
    killed = Linker(rig.linker.engine, "me")
    with pytest.raises(CannotLink, match="killed"):
        killed.link(rig.info, rig.there, "app", CHAIN)
    rig.node.before.clear()
    assert len(rig.node.of_kind("active")) == 1
    for other in (killed, Linker(rig.linker.engine, "another")):
        other.clean_up(rig.there)
        assert len(rig.node.of_kind("active")) == 1
    rig.linker.clean_up(rig.there)
    assert not rig.node.snapshots


def test_what_was_complete_before_a_kill_stays(rig: Rig) -> None:
    rig.link()
    Linker(rig.linker.engine, "me").clean_up(rig.there)
    assert len(rig.node.snapshots) == 4
    assert len(rig.node.leases) == 1


def test_another_image_of_the_repository_meanwhile_keeps_its_lease(rig: Rig) -> None:
    inner: list[LinkingResult] = []

    def link_other(message: Message) -> None:
        del rig.node.before["Usage"]
        # In a thread of its own, as the node answers one request after the other.
        other = threading.Thread(target=lambda: inner.append(rig.linker.link(rig.info, rig.there, "app", CHAIN[:1])))
        other.start()
        threads.append(other)

    threads: list[threading.Thread] = []
    rig.node.before["Usage"] = link_other
    assert rig.link().layers == 4
    threads[0].join()
    assert inner[0].there == 1
    kept = set().union(*(lease.snapshots for lease in rig.node.leases.values()))
    assert kept >= {str(CHAIN[0])}
    # The linking that ends last keeps its own layers, and which one that is depends on the threads.
    again = rig.link()
    assert again.there + again.layers == 4
    assert len(rig.node.leases) == 1


def test_another_snapshotter_in_the_node(rig: Rig) -> None:
    rig.node.snapshotter = "native"
    with pytest.raises(CannotLink, match="the node uses the snapshotter native"):
        rig.link()
    assert "Prepare" not in rig.node.calls


def test_a_node_whose_volume_is_elsewhere(rig: Rig) -> None:
    other = rig.root / "other"
    shutil.copytree(rig.node.root, other, ignore=shutil.ignore_patterns("*.sock"))
    wrong = NodeMount(str(other), str(rig.node.root))
    node = evolve(rig.there, mounts=(wrong,))

    def mirror(message: Message) -> None:
        return

    rig.node.before["Prepare"] = mirror
    (other / "snapshots/1/fs").mkdir(parents=True)
    with pytest.raises(CannotLink, match="not where Docker says"):
        rig.linker.link(rig.info, node, "app", CHAIN)
    assert not list((other / "snapshots/1/fs").iterdir())
    assert rig.node.of_kind("active") == []


def test_a_snapshot_behind_a_symbolic_link(rig: Rig) -> None:
    """As if a pod with a hostPath on the node's snapshots had put it there."""
    elsewhere = rig.root / "elsewhere"
    elsewhere.mkdir()
    (rig.node.root / "snapshots").mkdir()
    (rig.node.root / "snapshots/1").symlink_to(elsewhere)
    with pytest.raises(CannotLink):
        rig.link()
    assert not list((elsewhere / "fs").iterdir())


def test_a_node_whose_snapshots_are_in_no_volume(rig: Rig) -> None:
    with pytest.raises(CannotLink, match="in no volume"):
        rig.linker.link(rig.info, evolve(rig.there, mounts=()), "app", CHAIN)


def test_a_node_without_containerd(rig: Rig) -> None:
    rig.node.stop()
    Path(rig.node.socket).unlink(missing_ok=True)
    with pytest.raises(CannotLink, match="no containerd that k3dreg can reach"):
        rig.link()


def test_a_socket_behind_a_symbolic_link(rig: Rig) -> None:
    link = rig.root / "run"
    link.symlink_to(rig.node.root)
    with pytest.raises(CannotLink, match="no containerd"):
        rig.linker.link(rig.info, evolve(rig.there, socket=f"{link}/containerd.sock"), "app", CHAIN)
    (rig.root / "containerd.sock").symlink_to(rig.node.socket)
    with pytest.raises(CannotLink, match="no containerd socket"):
        rig.linker.link(rig.info, evolve(rig.there, socket=f"{rig.root}/containerd.sock"), "app", CHAIN)


def test_without_root(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CannotLink, match="not run as root"):
        rig.link()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"security_options": ("name=seccomp,profile=builtin", "name=userns")}, "userns-remap"),
        ({"security_options": ("name=rootless",)}, "rootless"),
        ({"store": ImageStore.PODMAN}, "Podman"),
        ({"driver": "stargz"}, "snapshotter stargz"),
        ({"store": ImageStore.CLASSIC, "driver": "vfs"}, "storage driver vfs"),
        (
            {"store": ImageStore.CLASSIC, "driver": "overlay2", "driver_status": {"Native Overlay Diff": "false"}},
            "Native Overlay Diff: false",
        ),
        (
            {"store": ImageStore.CLASSIC, "driver": "overlay2", "driver_status": {"Using metacopy": "true"}},
            "Using metacopy: true",
        ),
    ],
)
def test_an_engine_whose_layers_are_of_another_kind(rig: Rig, change: dict[str, Any], words: str) -> None:
    rig.info = evolve(rig.info, **change)
    with pytest.raises(CannotLink, match=words):
        rig.link()
    assert rig.node.calls == []


def test_an_engine_on_another_machine(rig: Rig) -> None:
    with pytest.raises(CannotLink, match="not on this machine"):
        Linker("", "me").link(rig.info, rig.there, "app", CHAIN)


def test_layers_of_the_classic_store(rig: Rig) -> None:
    rig.classic()
    assert rig.link().layers == 4
    assert all(map(rig.is_linked, CHAIN))


def test_an_image_that_docker_removes_meanwhile_from_its_classic_store(rig: Rig) -> None:
    rig.classic()
    about = rig.root / f"engine/image/overlay2/layerdb/sha256/{CHAIN[2].hex}"

    def remove(message: Message) -> None:
        if message.text(3) == str(CHAIN[1]):
            about.rename(f"{about}-removing")

    rig.node.before["Prepare"] = remove
    with pytest.raises(CannotLink, match="removes the image"):
        rig.link()
    assert rig.node.of_kind("committed") == list(map(str, CHAIN[:2]))
    assert rig.node.of_kind("active") == []


def test_docker_without_a_containerd_that_is_found(rig: Rig) -> None:
    rig.info = evolve(rig.info, containerd_address="/nowhere/containerd.sock")
    with pytest.raises(CannotLink, match="does not find the containerd"):
        rig.link()


def test_examining_a_node_changes_nothing(rig: Rig) -> None:
    rig.linker.examine(rig.info, rig.there)
    assert rig.node.calls == ["ImageFsInfo"]
    assert rig.docker.calls == []


def test_examining_tells_why_nothing_can_be_linked(rig: Rig) -> None:
    with pytest.raises(CannotLink, match="in no volume"):
        rig.linker.examine(rig.info, evolve(rig.there, mounts=()))
    elsewhere = NodeMount("/proc", str(rig.root / "node"))
    with pytest.raises(CannotLink, match=r"cannot reach Docker's files|different file systems"):
        rig.linker.examine(rig.info, evolve(rig.there, mounts=(elsewhere,)))
    with pytest.raises(CannotLink, match="Podman"):
        rig.linker.examine(evolve(rig.info, store=ImageStore.PODMAN), rig.there)


@pytest.mark.parametrize("name", ["docker", "node", "engine"])
def test_a_directory_that_is_a_mount_of_its_own(rig: Rig, name: str) -> None:
    """As Docker's root is where the file system above it is not shared."""
    directory = str(rig.root / name)
    if subprocess.run(["mount", "--bind", directory, directory], check=False, capture_output=True).returncode:
        pytest.skip("needs mount")
    try:
        assert rig.link().layers == 4
        assert all(map(rig.is_linked, CHAIN))
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def test_a_file_system_of_its_own_below_the_common_directory(rig: Rig) -> None:
    directory = str(rig.node.root / "snapshots")
    Path(directory).mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=False, capture_output=True).returncode:
        pytest.skip("needs mount")
    try:
        with pytest.raises(CannotLink, match=r"linking failed|not where Docker says|file systems"):
            rig.link()
        assert rig.node.of_kind("committed") == []
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)
