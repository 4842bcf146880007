"""Images for tests, as values."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence

from attrs import evolve, frozen

from k3dreg.docker.image import ImageStore
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.platform import Platform


@frozen
class FakeLayer:
    """`diff` is the layer's plain tar, `blob` what a registry and a containerd store keep of it."""

    diff: bytes
    blob: bytes
    media_type: str

    @property
    def diff_id(self) -> Digest:
        return Digest.of(self.diff)

    @property
    def descriptor(self) -> Descriptor:
        return describe(self.media_type, self.blob)


@frozen
class FakeVariant:
    """One platform of an image."""

    platform: Platform
    layers: tuple[FakeLayer, ...]
    config: bytes
    manifest: bytes

    @property
    def descriptor(self) -> Descriptor:
        return evolve(describe(media_types.OCI_MANIFEST, self.manifest), platform=self.platform)

    @property
    def contents(self) -> dict[Digest, bytes]:
        """Config and layers, as a registry has them."""
        return {Digest.of(self.config): self.config, **{layer.descriptor.digest: layer.blob for layer in self.layers}}


@frozen
class FakeImage:
    """An image.  Without `index` it is one manifest.

    `held` says of which platforms the engine has anything; `lost` which blobs it should have and has not.
    """

    name: str
    variants: tuple[FakeVariant, ...]
    index: bytes = b""
    held: frozenset[str] = frozenset()
    lost: frozenset[Digest] = frozenset()

    @property
    def root(self) -> Descriptor:
        """What the tag means in a registry and in a containerd store."""
        if self.index:
            return describe(media_types.OCI_INDEX, self.index)
        return describe(media_types.OCI_MANIFEST, self.variants[0].manifest)

    @property
    def root_bytes(self) -> bytes:
        return self.index or self.variants[0].manifest

    @property
    def best(self) -> FakeVariant:
        """The platform that a classic store has, and that an engine speaks of."""
        return next((v for v in self.variants if self.is_complete(v)), self.variants[0])

    def id(self, store: ImageStore) -> Digest:
        """The image's ID in an engine with such a store."""
        return self.root.digest if store is ImageStore.CONTAINERD else Digest.of(self.best.config)

    def is_held(self, variant: FakeVariant) -> bool:
        return str(variant.platform) in self.held

    def is_complete(self, variant: FakeVariant) -> bool:
        return self.is_held(variant) and not self.lost.intersection(variant.contents)

    @property
    def contents(self) -> dict[Digest, bytes]:
        """Everything a containerd store has of it, by digest: what a node may ask for."""
        found = {self.root.digest: self.root_bytes}
        for variant in self.variants:
            if self.is_held(variant):
                found[variant.descriptor.digest] = variant.manifest
                found |= {d: data for d, data in variant.contents.items() if d not in self.lost}
        return found


def describe(media_type: str, data: bytes) -> Descriptor:
    return Descriptor(media_type, Digest.of(data), len(data))


def make_layer(files: Mapping[str, bytes], *, compress: bool = True) -> FakeLayer:
    """A layer of `files`, the same bytes each time."""
    diff = make_tar(sorted(files.items()))
    blob = gzip.compress(diff, 1, mtime=0) if compress else diff
    return FakeLayer(diff, blob, f"{media_types.OCI_LAYER}+gzip" if compress else media_types.OCI_LAYER)


def make_image(
    name: str = "docker.io/library/hello:1",
    layers: Sequence[FakeLayer] | None = None,
    *,
    platforms: Sequence[str] = ("linux/amd64",),
    held: Iterable[str] | None = None,
    indexed: bool | None = None,
    labels: Mapping[str, str] | None = None,
) -> FakeImage:
    """An image of `layers` (default: two small ones) for each of `platforms`.

    It has an index if there are several platforms, or if `indexed` says so.  `held` are the platforms that an engine
    has of it, by default the first only, as after a pull.  Where there are several, each has a layer of its own, too.
    `labels` make an image with the same layers another one.
    """
    if layers is None:
        layers = (make_layer({"hello": b"hello, world\n"}), make_layer({"data": bytes(range(256)) * 64}))
    several = len(platforms) > 1
    variants = []
    for spelled in platforms:
        platform = Platform(*spelled.split("/"))
        own = [make_layer({"etc/platform": spelled.encode()})] if several else []
        variants.append(_make_variant(platform, (*layers, *own), labels or {}))
    index = b""
    if indexed or (indexed is None and several):
        children = [variant.descriptor.to_json() for variant in variants]
        index = to_json({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": children})
    return FakeImage(name, tuple(variants), index, frozenset(platforms[:1] if held is None else held))


def lose(image: FakeImage, digest: Digest) -> FakeImage:
    """The image as an engine has it that lacks one of its blobs."""
    return evolve(image, lost=image.lost | {digest})


def make_tar(entries: Iterable[tuple[str, bytes | str | None]]) -> bytes:
    """A tar as Go's `archive/tar` writes it: names with bytes (files), None (directories) or a link's target.

    Ends with two zero blocks and is not padded further, as Docker's are not.
    """
    out = io.BytesIO()
    for name, content in entries:
        info = tarfile.TarInfo(name)
        info.mode = 0o444
        if content is None:
            info.type, info.mode = tarfile.DIRTYPE, 0o755
        elif isinstance(content, str):
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, content, 0o777
        else:
            info.size = len(content)
        header = info.tobuf(tarfile.USTAR_FORMAT)
        assert len(header) == tarfile.BLOCKSIZE, "names of tests are short"
        out.write(_with_device_numbers(header))
        if isinstance(content, bytes):
            out.write(content + bytes(-len(content) % tarfile.BLOCKSIZE))
    out.write(bytes(2 * tarfile.BLOCKSIZE))
    return out.getvalue()


def _with_device_numbers(header: bytes) -> bytes:
    """Go fills in device numbers of zero where Python leaves the fields empty."""
    changed = bytearray(header)
    changed[329:345] = b"0000000\0" * 2
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def _make_variant(platform: Platform, layers: tuple[FakeLayer, ...], labels: Mapping[str, str]) -> FakeVariant:
    config = to_json(
        {
            **platform.to_json(),
            "config": {"Cmd": ["/hello"], "Labels": dict(labels)},
            "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]},
            "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
        }
    )
    manifest = to_json(
        {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": describe(media_types.OCI_CONFIG, config).to_json(),
            "layers": [layer.descriptor.to_json() for layer in layers],
        }
    )
    return FakeVariant(platform, layers, config, manifest)


def familiar(name: str) -> str:
    """A full name as Docker shows it."""
    return name.removeprefix("docker.io/").removeprefix("library/")


def to_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
