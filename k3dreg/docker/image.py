"""Values that describe an engine and its images."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping

from attrs import frozen

from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BadRequest
from k3dreg.oci.platform import Platform
from k3dreg.oci.reference import Repository

# Names of the images that k3dreg imports for its containers: `k3dreg-reader:0123abcd-`, and 32 hexadecimal digits.
_HELPER_IMAGE = re.compile(r"(localhost/)?k3dreg-[a-z-]+:[A-Za-z0-9]{1,8}-[0-9a-f]{32}")


def is_helper_image(name: str) -> bool:
    """Return whether `name` is that of an image that k3dreg has imported for its own containers."""
    return _HELPER_IMAGE.fullmatch(name) is not None


class ImageStore(enum.Enum):
    """The kind of an engine's image store, which decides what an image's ID is and which digests the engine keeps."""

    CONTAINERD = "containerd"  # ID = digest of the tag's target; every registry digest is kept
    CLASSIC = "classic"  # ID = digest of the config; manifests are not kept
    PODMAN = "podman"  # as CLASSIC, with another archive layout, and with the registry in every name


@frozen
class EngineInfo:
    """An engine, as it described itself last.

    `id` is the engine's own ID (`/info`), "" if it has no lasting one.  `root_dir` is a path on the *engine's* host.
    `insecure_registries` are the hosts, with ports, that its settings name as insecure.  `mirrors` are the URLs of its
    registry mirrors.  `driver_status` is what it tells of its storage driver, and `security_options` of what confines
    containers, as `docker info` prints them.
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
    containerd_namespace: str = ""
    driver_status: Mapping[str, str] = {}
    security_options: tuple[str, ...] = ()


@frozen
class ChildManifest:
    """An entry of an image's index, with what the engine has of it (API 1.48, `Manifests`).

    `held` is the number of bytes, those of the manifest included, that are in the engine's content store.
    """

    descriptor: Descriptor
    available: bool
    kind: str  # "image", "attestation", "unknown"
    held: int = 0


@frozen
class EngineImage:
    """An image in the engine.

    `descriptor` is the root's descriptor if the engine tells it (containerd store, API >= 1.48).
    `diff_ids` are the digests of the uncompressed layers, lowest first.
    `children` is empty if the engine does not list them (API < 1.48, or classic store).
    `size` is the engine's count of bytes, which changes when another platform of the image arrives.
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
        """A text that changes whenever an export of the same image ID may contain more, or less, than before."""
        held = "".join("1" if child.available else "0" for child in self.children)
        return f"{self.id} {self.size} {held}"

    def digests_in(self, repository: Repository) -> frozenset[Digest]:
        """Return the digests that the image has in its registry's `repository`, according to the engine.

        With the containerd store that is the image's ID.  Another store tells by which digests it pulled the image from
        there, or pushed it there.
        """
        if self.store is ImageStore.CONTAINERD:
            return frozenset([self.id])
        told = [_parse_digest(name) for name in self.repo_digests]
        return frozenset(digest for there, digest in told if digest is not None and there == repository.upstream)


def _parse_digest(name: str) -> tuple[Repository, Digest] | tuple[None, None]:
    """Return the repository and the digest in an entry of `RepoDigests`, None for one that does not parse."""
    called, _, digest = name.partition("@")
    try:
        return Repository.of_name(called).upstream, Digest.parse(digest)
    except BadRequest:
        return None, None


@frozen
class PullProgress:
    """The progress of a pull by the engine: its last message, bytes of layers that arrived, and bytes known in all."""

    status: str
    current: int = 0
    total: int = 0
