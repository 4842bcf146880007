"""Link the layers of an image into the containerd of a node, so that its pull finds them there.

containerd skips a layer whose snapshot exists (containerd, `core/unpack/unpacker.go`).  A snapshot is named by the
layer's chain ID, and is a directory with the layer's unpacked files: the same directory that Docker has.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Sequence

from attrs import define, field, frozen

from k3dreg.clusters.nodes import NAMESPACE, Node
from k3dreg.docker.image import EngineInfo
from k3dreg.linking.engine_host import EngineHost, find_engine_host, on_host, open_below, same_directory
from k3dreg.linking.link_tree import LinkedFiles, link_tree
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.linking.snapshots import SNAPSHOTTER, AlreadyExists, Containerd, SnapshotMount, SnapshotUnknown
from k3dreg.linking.unpacked_layers import UnpackedLayers, check_engine, unpacked_layers
from k3dreg.oci.digest import Digest

# Seconds for which what was linked is kept in a node that does not pull it.
_KEPT = 24 * 3600.0
_BEGINNING = "k3dreg-link"


@define
class LinkingResult:
    """What was done for one image and node.

    `layers` is the number of layers that were linked, `there` of those that the node had, and `missing` of those that
    Docker has not unpacked.  `saved` is the size in bytes of the linked layers on the disk.
    """

    layers: int = 0
    there: int = 0
    missing: int = 0
    files: int = 0
    copied: int = 0
    saved: int = 0
    seconds: float = 0.0


@frozen
class Linker:
    """Links layers of the engine that listens on the UNIX socket `engine` into nodes.

    `owner` tells the leases of several k3dregs apart, and `run` those of this process from those of earlier ones.
    With a `host`, the engine's files are there, and `engine` is not asked for them.
    """

    engine: str
    owner: str
    run: str = field(factory=lambda: secrets.token_hex(4))
    host: EngineHost | None = None
    _busy: set[str] = field(factory=set, init=False, eq=False)  # the leases of linkings under way

    def link(
        self,
        info: EngineInfo,
        node: Node,
        repository: str,
        chain: Sequence[Digest],
        proceed: Callable[[], None] = lambda: None,
    ) -> LinkingResult:
        """Link those layers that Docker has unpacked and the node lacks, the lowest first; return what was done.

        `chain` are the chain IDs of all layers of an image.  `proceed` is called often, and stops the work by raising;
        layers that are complete then stay.  They are kept for a day, or until another image of `repository` is linked.

        Raises `CannotLink`; the node then pulls what was not linked.  Blocks.
        """
        started = time.monotonic()
        host = self._host(info)
        try:
            with (
                self._connect(node) as containerd,
                unpacked_layers(host, info, chain, self._new_lease("docker")) as layers,
            ):
                _check_snapshotter(containerd)
                done = self._into(containerd, _Work(host, node, chain, layers, proceed), repository)
        except (AlreadyExists, SnapshotUnknown) as error:
            raise CannotLink(f"snapshots were changed meanwhile: {error}") from error
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise CannotLink("the disk of Docker's layers and the node's snapshots is full") from error
            raise CannotLink(f"linking failed: {error.strerror or error}") from error
        done.seconds = time.monotonic() - started
        return done

    def examine(self, info: EngineInfo, node: Node) -> None:
        """Raise `CannotLink` if it is clear beforehand that no layers can be linked.  Changes nothing.  Blocks."""
        host = self._host(info)
        with self._connect(node) as containerd:
            directories = _check_snapshotter(containerd)
        try:
            docker = os.stat(host.path(info.root_dir)).st_dev
            if any(os.stat(host.path(on_host(each, node.mounts)[0])).st_dev != docker for each in directories):
                raise CannotLink("Docker's layers and the node's snapshots are on different file systems")
        except OSError as error:
            raise CannotLink(f"k3dreg cannot reach Docker's files: {error.strerror}") from error

    def clean_up(self, node: Node) -> None:
        """Remove what an earlier run of this k3dreg, which was killed, left incomplete in the node.

        Raises `CannotLink`.  Blocks.
        """
        with self._connect(node) as containerd:
            for lease in containerd.leases(f"{_BEGINNING}-{self.owner}-"):
                for name in containerd.leased(lease):
                    # An active snapshot has the name of its lease in its own.
                    if name.startswith(lease) and f"-{self.run}-" not in lease:
                        containerd.remove(name)

    def _host(self, info: EngineInfo) -> EngineHost:
        check_engine(info)
        if os.geteuid() != 0:
            raise CannotLink("k3dreg does not run as root on Docker's machine")
        return self.host or find_engine_host(self.engine)

    def _new_lease(self, subject: str) -> str:
        return f"{_BEGINNING}-{self.owner}-{subject}-{self.run}-{secrets.token_hex(4)}"

    def _connect(self, node: Node) -> Containerd:
        return Containerd(_node_socket(node), NAMESPACE, f"the containerd of {node.name}")

    def _into(self, containerd: Containerd, work: _Work, repository: str) -> LinkingResult:
        """Link all layers, in a lease that replaces those of images of the repository that were linked before."""
        done = LinkingResult()
        subject = Digest.of(repository.encode()).short
        lease = self._new_lease(subject)
        self._busy.add(lease)
        try:
            containerd.create_lease(lease, _KEPT)
            for number in range(len(work.chain)):
                work.proceed()
                if not _layer(containerd, work, number, lease, done):
                    done.missing = len(work.chain) - number
                    break
        finally:
            obsolete = [lease]
            if done.layers or done.there:
                known = containerd.leases(f"{_BEGINNING}-{self.owner}-{subject}-")
                obsolete = [each for each in known if each not in self._busy]
            self._busy.discard(lease)
            for each in obsolete:
                containerd.delete_lease(each)
        return done


@frozen
class _Work:
    """What is linked: the layers of an image that Docker has, into a node."""

    host: EngineHost
    node: Node
    chain: Sequence[Digest]
    layers: UnpackedLayers
    proceed: Callable[[], None]


def _layer(containerd: Containerd, work: _Work, number: int, lease: str, done: LinkingResult) -> bool:
    """Make sure that the node has one layer, whose parents it has.  Return False if Docker does not have it."""
    chain, layers = work.chain, work.layers
    name, key = str(chain[number]), f"{lease}-{number}"
    try:
        mount = containerd.prepare(key, str(chain[number - 1]) if number else "", name, lease)
    except AlreadyExists:
        done.there += 1
        return True
    try:
        if number >= len(layers.directories):
            return False
        linked = _fill(work, mount, layers.directories[number])
        if not layers.is_whole(number):
            raise CannotLink("Docker removes the image")
        containerd.commit(key, name, lease)
        key = ""
    except AlreadyExists:  # the node's own pull was faster
        done.there += 1
        return True
    finally:
        if key:
            containerd.remove(key)
    done.layers += 1
    done.files += linked.files
    done.copied += linked.copied
    done.saved += containerd.usage(name)
    return True


def _fill(work: _Work, mount: SnapshotMount, source: str) -> LinkedFiles:
    """Link Docker's directory `source` into the new snapshot of the node."""
    target, below = on_host(mount.upper, work.node.mounts)
    with work.host.pair(source, target, below) as (from_directory, to_directory):
        # Proves that this is the node's snapshot, and that engine and node are on this machine.
        if not same_directory(to_directory, f"/proc/{work.node.pid}/root{mount.upper}"):
            raise CannotLink("the node's snapshots are not where Docker says")
        return link_tree(from_directory, to_directory, work.proceed)


def _check_snapshotter(containerd: Containerd) -> Sequence[str]:
    """Return the node's directories of snapshots.  Raises `CannotLink` unless the kubelet's images use overlayfs."""
    directories = containerd.image_file_systems()
    for directory in directories:
        name = directory.rpartition(".")[2]
        if name != SNAPSHOTTER:
            raise CannotLink(f"the node uses the snapshotter {name}, and not {SNAPSHOTTER}")
    return directories


def _node_socket(node: Node) -> str:
    """Return a path by which this process reaches the node's socket.

    Absolute symbolic links in the node's file system would lead to files of this machine.
    """
    root, (directory, _, name) = f"/proc/{node.pid}/root", node.socket.rpartition("/")
    try:
        base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.close(open_below(base, directory))
        finally:
            os.close(base)
        found = os.lstat(f"{root}{node.socket}")
    except OSError as error:
        raise CannotLink(f"{node.name} has no containerd that k3dreg can reach: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise CannotLink(f"{node.name} has no containerd socket")
    return f"{root}{directory}/{name}"
