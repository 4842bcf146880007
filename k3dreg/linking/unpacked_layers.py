"""Find the directories in which Docker has layers unpacked, and notice if they do not stay while they are linked.

All of it blocks.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.engine_files.layout import LayerPaths
from k3dreg.linking.engine_host import EngineHost
from k3dreg.linking.linking_errors import CannotLink
from k3dreg.linking.snapshots import SNAPSHOTTER, Containerd, SnapshotUnknown
from k3dreg.oci.digest import Digest

# Seconds after which Docker's containerd forgets the lease of a linking that was killed.
_LEASE = 600.0
_CACHE_ID = re.compile(r"[A-Za-z0-9-]{1,100}")


# Sockets of a containerd that Docker started or found, for engines that do not name theirs (API < 1.46).
_SOCKETS = ("/run/containerd/containerd.sock", "/run/docker/containerd/containerd.sock")
_NAMESPACE = "moby"


class UnpackedLayers(Protocol):
    """The layers that Docker has unpacked of one image, the lowest first."""

    directories: Sequence[str]

    def is_whole(self, number: int) -> bool:
        """Return whether the directory of this number has still been whole at this call."""


def check_engine(info: EngineInfo) -> None:
    """Raise `CannotLink` if layers are not unpacked by this engine as a node's containerd unpacks them."""
    for option in info.security_options:
        for name, words in (("rootless", "runs rootless"), ("userns", "maps users (userns-remap)")):
            if option == f"name={name}":
                raise CannotLink(f"Docker {words}")
    if info.store is ImageStore.PODMAN:
        raise CannotLink("the engine is Podman")
    if info.store is ImageStore.CONTAINERD:
        if info.driver != SNAPSHOTTER:
            raise CannotLink(f"Docker uses the snapshotter {info.driver}, and not {SNAPSHOTTER}")
        return
    if info.driver != "overlay2":
        raise CannotLink(f"Docker uses the storage driver {info.driver}, and not overlay2")
    # Otherwise a layer's directory is no complete layer, or has its marks elsewhere.
    for name, right in (("Native Overlay Diff", "true"), ("Using metacopy", "false"), ("userxattr", "false")):
        if info.driver_status.get(name, right) != right:
            raise CannotLink(f"Docker's storage driver has {name}: {info.driver_status[name]}, and not {right}")


@contextlib.contextmanager
def unpacked_layers(
    host: EngineHost, info: EngineInfo, chain: Sequence[Digest], lease: str
) -> Iterator[UnpackedLayers]:
    """Find the layers of these chain IDs that Docker has unpacked.

    The containerd store keeps them until the end.  The classic store may remove them: ask `is_whole` for each.

    `lease` is an unused name.  Raises `CannotLink` and `OSError`.
    """
    paths = LayerPaths.of(info)
    if paths is not None:
        yield ClassicLayers(host, paths, chain)
        return
    addresses = [info.containerd_address] if info.containerd_address else _SOCKETS
    sockets = [path for each in addresses if os.path.exists(path := host.path(each))]
    if not sockets:
        raise CannotLink("k3dreg does not find the containerd that Docker uses")
    namespace = info.containerd_namespace or _NAMESPACE
    layers: UnpackedLayers = _Held(())
    with contextlib.ExitStack() as stack:
        for socket in sockets:
            containerd = stack.enter_context(Containerd(socket, namespace, "Docker's containerd"))
            layers = stack.enter_context(in_containerd_store(containerd, chain, lease))
            if layers.directories:
                break
        yield layers


@contextlib.contextmanager
def in_containerd_store(containerd: Containerd, chain: Sequence[Digest], lease: str) -> Iterator[UnpackedLayers]:
    """Look the layers of these chain IDs up in Docker's containerd, and keep them there until the end.

    `lease` is an unused name.  Raises `CannotLink`.
    """
    containerd.create_lease(lease, _LEASE)
    try:
        for count in range(len(chain), 0, -1):
            try:
                mount = containerd.view(f"{lease}-{count}", str(chain[count - 1]), lease)
            except SnapshotUnknown:
                continue
            if "userxattr" in mount.options:
                raise CannotLink("Docker's overlayfs keeps its marks in attributes of users (userxattr)")
            directories = mount.lower[::-1] or (mount.source,)
            try:
                if len(directories) != count:
                    raise CannotLink(f"Docker's containerd gives {len(directories)} directories for {count} layers")
                yield _Held(directories)
            finally:
                containerd.remove(f"{lease}-{count}")
            return
        yield _Held(())
    finally:
        containerd.delete_lease(lease)


class _Held:
    """Layers that a lease keeps."""

    def __init__(self, directories: Sequence[str]) -> None:
        self.directories = directories

    def is_whole(self, number: int) -> bool:
        return True


class ClassicLayers:
    """Layers in the classic store with overlay2.

    Docker renames a layer's metadata directory before it removes the layer's files (moby, `layer/layer_store.go`).
    So a layer whose metadata is where it was has been whole until then.
    """

    def __init__(self, host: EngineHost, paths: LayerPaths, chain: Sequence[Digest]) -> None:
        self._host = host
        self._paths = paths
        self._chain = chain
        self._ids: list[str] = []
        for each in chain:
            found = self._cache_id(each)
            if not found:
                break
            self._ids.append(found)
        self.directories: Sequence[str] = [paths.files(each) for each in self._ids]

    def is_whole(self, number: int) -> bool:
        return self._cache_id(self._chain[number]) == self._ids[number]

    def _cache_id(self, chain: Digest) -> str:
        """Return the name of a layer's directory; "" if Docker does not have the layer."""
        try:
            text = Path(self._host.path(self._paths.about(chain, "cache-id"))).read_text("ascii").strip()
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise CannotLink(f"Docker's metadata of a layer cannot be read: {error}") from error
        if not _CACHE_ID.fullmatch(text):
            raise CannotLink("Docker's metadata of a layer names no directory")
        return text
