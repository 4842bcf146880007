"""What an engine says of itself and of an image, as values."""

from __future__ import annotations

import enum
import re

from attrs import frozen

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.platform import Platform

# Names of the images that k3dreg imports for its containers: `k3dreg-reader:0123abcd-`, and 32 hexadecimal digits.
_HELPER_IMAGE = re.compile(r"(localhost/)?k3dreg-[a-z-]+:[A-Za-z0-9]{1,8}-[0-9a-f]{32}")


def is_helper_image(name: str) -> bool:
    """Whether an image of this name is one that k3dreg has imported for its own containers."""
    return _HELPER_IMAGE.fullmatch(name) is not None


class ImageStore(enum.Enum):
    """How an engine keeps images.  It decides what an image's ID means, and which digests exist at all."""

    CONTAINERD = "containerd"  # ID = digest of the tag's target; every registry digest is kept
    CLASSIC = "classic"  # ID = digest of the config; manifests are not kept
    PODMAN = "podman"  # as CLASSIC, with another archive layout, and every name written in full


@frozen
class EngineInfo:
    """An engine, as of the last time it was asked.

    `id` is the engine's own (`/info` ID), "" where it has none that lasts.
    `root_dir` is a path on the *engine's* host.  `insecure_registries` are hosts, with their ports, that its settings
    name as such; `mirrors` are the URLs of its registry mirrors.
    """

    id: str
    version: str
    api_version: tuple[int, int]
    store: ImageStore
    driver: str
    root_dir: str
    os_type: str = "linux"
    containerd_address: str = ""
    platform: Platform | None = None
    insecure_registries: frozenset[str] = frozenset()
    mirrors: tuple[str, ...] = ()


@frozen
class ChildManifest:
    """One entry of an image's index, as the engine sees it (API 1.48, `Manifests`).

    `held` is how many bytes of it, its manifest included, are in the engine's content store.
    """

    descriptor: Descriptor
    available: bool
    kind: str  # "image", "attestation", "unknown"
    held: int = 0


@frozen
class EngineImage:
    """An image in the engine.

    `descriptor` is the root's descriptor where the engine tells it (containerd store, API >= 1.48).
    `diff_ids` are the digests of the uncompressed layers, lowest first.
    `children` is empty where the engine does not tell (API < 1.48, or classic).
    `size` in bytes as the engine counts it: it changes when another platform of the image arrives.
    """

    id: Digest
    store: ImageStore
    tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    diff_ids: tuple[Digest, ...] = ()
    descriptor: Descriptor | None = None
    children: tuple[ChildManifest, ...] = ()
    platform: Platform | None = None
    size: int = 0

    @property
    def fingerprint(self) -> str:
        """Changes whenever an export of the image under the same ID may hold more, or less, than before."""
        held = "".join("1" if child.available else "0" for child in self.children)
        return f"{self.id} {self.size} {held}"


@frozen
class PullProgress:
    """How far a pull by the engine is: bytes of layers that arrived, and are expected as far as known."""

    status: str
    current: int = 0
    total: int = 0
