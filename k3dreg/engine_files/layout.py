"""Where an engine keeps images on its host's disk, as paths on that host.

All of it was seen on Docker 20.10, 26.1 and 28.5.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from attrs import frozen

from k3dreg.docker.image import EngineInfo, ImageStore
from k3dreg.oci.digest import Digest

_CONTENT = "io.containerd.content.v1.content"
# The content directory of a containerd that was not started by dockerd, as its packages configure it.
_SYSTEM_CONTENT = f"/var/lib/containerd/{_CONTENT}"
# Docker Desktop's, in its virtual machine: not tried, but known from what it says in its users' error reports.
_DESKTOP_CONTENT = f"/var/lib/desktop-containerd/daemon/{_CONTENT}"
# Sockets of such a containerd.  dockerd's own has its socket under dockerd's --exec-root.
_SYSTEM_SOCKETS = ("/run/containerd/", "/var/run/containerd/")


def content_directories(info: EngineInfo) -> tuple[str, ...]:
    """Where the containerd store's content may be, likeliest first; empty for other stores.

    Engines before API 1.46 do not say which containerd they use.
    """
    if info.store is not ImageStore.CONTAINERD or not info.root_dir.startswith("/"):
        return ()
    own = posixpath.join(info.root_dir, "containerd/daemon", _CONTENT)
    if info.containerd_address.startswith(_SYSTEM_SOCKETS):
        return (_SYSTEM_CONTENT, own, _DESKTOP_CONTENT)
    return (own, _SYSTEM_CONTENT, _DESKTOP_CONTENT)


def content_path(directory: str, digest: Digest) -> str:
    """The file of a blob.  What has not arrived whole is elsewhere, under `ingest`."""
    return posixpath.join(directory, "blobs", digest.algorithm, digest.hex)


@frozen
class LayerPaths:
    """The classic image store with the storage driver overlay2."""

    database: str
    layers: str

    @classmethod
    def of(cls, info: EngineInfo) -> LayerPaths | None:
        """None for another store or another driver."""
        if info.store is not ImageStore.CLASSIC or info.driver != "overlay2" or not info.root_dir.startswith("/"):
            return None
        return cls(posixpath.join(info.root_dir, "image/overlay2"), posixpath.join(info.root_dir, "overlay2"))

    def config(self, image: Digest) -> str:
        """The exact bytes of an image's config."""
        return posixpath.join(self.database, "imagedb/content", image.algorithm, image.hex)

    def about(self, chain: Digest, name: str) -> str:
        """What is kept about a layer: `diff`, `cache-id`, `tar-split.json.gz`."""
        return posixpath.join(self.database, "layerdb", chain.algorithm, chain.hex, name)

    def files(self, cache_id: str) -> str:
        """The directory of a layer's own files."""
        return posixpath.join(self.layers, cache_id, "diff")


def engine_directories(info: EngineInfo) -> tuple[tuple[str, ...], ...]:
    """Everything that is worth reading on this engine's host: alternatives, each a set of directories."""
    paths = LayerPaths.of(info)
    if paths is not None:
        return ((paths.database, paths.layers),)
    return tuple((directory,) for directory in content_directories(info))


def chain_ids(diff_ids: Iterable[Digest]) -> list[Digest]:
    """The name of each layer together with all below it (image-spec 1.1, config.md, "Layer ChainID")."""
    chains: list[Digest] = []
    for diff_id in diff_ids:
        chains.append(Digest.of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains
