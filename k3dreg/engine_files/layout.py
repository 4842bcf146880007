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
# The content directory of a containerd that dockerd did not start, with the default root of its packages.
_SYSTEM_CONTENT = f"/var/lib/containerd/{_CONTENT}"
# The content directory in Docker Desktop's virtual machine.  It was not tried; the path is in its users' error reports.
_DESKTOP_CONTENT = f"/var/lib/desktop-containerd/daemon/{_CONTENT}"
# Socket directories of a containerd that dockerd did not start.  dockerd's own has its socket under its --exec-root.
_SYSTEM_SOCKETS = ("/run/containerd/", "/var/run/containerd/")


def content_directories(info: EngineInfo) -> tuple[str, ...]:
    """Return the directories that may be the containerd store's content directory, the likeliest first.

    There are several because engines before API 1.46 do not say which containerd they use.  Empty for other stores.
    """
    if info.store is not ImageStore.CONTAINERD or not info.root_dir.startswith("/"):
        return ()
    own = posixpath.join(info.root_dir, "containerd/daemon", _CONTENT)
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


def chain_ids(diff_ids: Iterable[Digest]) -> list[Digest]:
    """Return the chain ID of each layer, lowest first (image-spec 1.1, config.md, "Layer ChainID")."""
    chains: list[Digest] = []
    for diff_id in diff_ids:
        chains.append(Digest.of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains
