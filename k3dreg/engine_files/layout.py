"""Paths on the engine's host where the engine keeps images.

They were observed on Docker 20.10, 26.1 and 28.5.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from attrs import frozen

from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.oci.digest import Digest

_CONTENT = "io.containerd.content.v1.content"
# The root of a containerd that dockerd did not start, as its packages have it.
_SYSTEM_ROOT = "/var/lib/containerd"
_SYSTEM_CONTENT = f"{_SYSTEM_ROOT}/{_CONTENT}"
# The root, below Docker's, of a containerd that dockerd started.
_OWN_ROOT = "containerd/daemon"
# The content directory in Docker Desktop's virtual machine.  It was not tried; the path is in its users' error reports.
_DESKTOP_CONTENT = f"/var/lib/desktop-containerd/daemon/{_CONTENT}"
# Socket directories of a containerd that dockerd did not start.  dockerd's own has its socket under its --exec-root.
_SYSTEM_SOCKETS = ("/run/containerd/", "/var/run/containerd/")
_OWN_SOCKETS = "/run/docker/containerd/"  # with the default --exec-root


def content_directories(info: EngineInfo) -> tuple[str, ...]:
    """Return the directories that may be the containerd store's content directory, the likeliest first.

    There are several because engines before API 1.46 do not say which containerd they use.  Empty for other stores.
    """
    if info.store is not ImageStore.CONTAINERD or not info.root_dir.startswith("/"):
        return ()
    own = posixpath.join(info.root_dir, _OWN_ROOT, _CONTENT)
    if info.containerd_address.startswith(_SYSTEM_SOCKETS):
        return (_SYSTEM_CONTENT, own, _DESKTOP_CONTENT)
    return (own, _SYSTEM_CONTENT, _DESKTOP_CONTENT)


def content_path(directory: str, digest: Digest) -> str:
    """Return the path of a blob's file.  containerd keeps incomplete blobs elsewhere, under `ingest`."""
    return posixpath.join(directory, "blobs", digest.algorithm, digest.hex)


@frozen
class LayerPaths:
    """Paths in the classic image store with the storage driver overlay2."""

    database: str
    layers: str

    @classmethod
    def of(cls, info: EngineInfo) -> LayerPaths | None:
        """Return the engine's paths; None for another store or another driver."""
        if info.store is not ImageStore.CLASSIC or info.driver != "overlay2" or not info.root_dir.startswith("/"):
            return None
        return cls(posixpath.join(info.root_dir, "image/overlay2"), posixpath.join(info.root_dir, "overlay2"))

    def config(self, image: Digest) -> str:
        """Return the path of the file with the exact bytes of an image's config."""
        return posixpath.join(self.database, "imagedb/content", image.algorithm, image.hex)

    def about(self, chain: Digest, name: str) -> str:
        """Return the path of a layer's metadata file `name`: `diff`, `cache-id` or `tar-split.json.gz`."""
        return posixpath.join(self.database, "layerdb", chain.algorithm, chain.hex, name)

    def files(self, cache_id: str) -> str:
        """Return the path of the directory with the files of one layer."""
        return posixpath.join(self.layers, cache_id, "diff")


def engine_directories(info: EngineInfo) -> tuple[tuple[str, ...], ...]:
    """Return the directories that k3dreg reads on this engine's host: alternatives, each a tuple of directories."""
    paths = LayerPaths.of(info)
    if paths is not None:
        return ((paths.database, paths.layers),)
    return tuple((directory,) for directory in content_directories(info))


def linking_directories(info: EngineInfo) -> tuple[tuple[str, ...], ...]:
    """Return the directories that a helper needs to link layers on this engine's host: alternatives, as above.

    The first of each has both Docker's volumes and its layers below it, because no link leads from one mount to
    another.  For the containerd store, the second has the containerd's socket.  Empty where there is no such directory.
    """
    if not info.root_dir.startswith("/") or info.store is not ImageStore.CONTAINERD:
        return ((info.root_dir,),) if LayerPaths.of(info) is not None else ()
    own = posixpath.join(info.root_dir, _OWN_ROOT)
    choices: tuple[tuple[str, str], ...] = ((own, _OWN_SOCKETS), (_SYSTEM_ROOT, _SYSTEM_SOCKETS[0]))
    if info.containerd_address:
        is_own = not info.containerd_address.startswith(_SYSTEM_SOCKETS)
        choices = ((own if is_own else _SYSTEM_ROOT, info.containerd_address),)
    found = ((posixpath.commonpath((info.root_dir, root)), posixpath.dirname(socket)) for root, socket in choices)
    return tuple(each for each in found if each[0] != "/")


def chain_ids(diff_ids: Iterable[Digest]) -> list[Digest]:
    """Return the chain ID of each layer, lowest first (image-spec 1.1, config.md, "Layer ChainID")."""
    chains: list[Digest] = []
    for diff_id in diff_ids:
        chains.append(Digest.of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains
