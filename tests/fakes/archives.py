"""The archives that engines make of images, laid out as Docker 20.10 to 28.5 and Podman lay them out."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from k3dreg.docker.image import ImageStore
from k3dreg.oci import media_types
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from tests.fakes.images import FakeImage, describe, familiar, make_tar, to_json

Entries = list[tuple[str, bytes | str | None]]


class Layout(enum.Enum):
    """How an engine lays out the archive of an image."""

    CONTAINERD = "containerd store: an OCI layout with the original index and the registry's blobs"
    CLASSIC = "classic store, Engine 25 and later: an OCI layout with plain layers"
    LEGACY = "classic store, Engine 20.10 to 24: a directory per layer"
    PODMAN = "Podman: one tar per layer, directories with links to them"


def layout_of(store: ImageStore, api: tuple[int, int]) -> Layout:
    """How an engine with this store and API version lays out its archives."""
    if store is ImageStore.CONTAINERD:
        return Layout.CONTAINERD
    if store is ImageStore.PODMAN:
        return Layout.PODMAN
    return Layout.CLASSIC if api >= (1, 44) else Layout.LEGACY


def build_archive(image: FakeImage, layout: Layout, *, named: bool = False) -> bytes:
    """The archive that `docker save` makes: by ID, or with `named` by the image's name."""
    entries = {
        Layout.CONTAINERD: _containerd_entries,
        Layout.CLASSIC: _classic_entries,
        Layout.LEGACY: _legacy_entries,
        Layout.PODMAN: _podman_entries,
    }
    return make_tar(entries[layout](image, named))


def _containerd_entries(image: FakeImage, named: bool) -> Entries:
    blobs = {image.root.digest: image.root_bytes}
    for variant in filter(image.is_held, image.variants):
        blobs[variant.descriptor.digest] = variant.manifest
        if image.is_complete(variant):  # one blob is lost: the engine withholds the others, too
            blobs |= variant.contents
    paths = {"Config": _path(Digest.of(image.best.config)), "RepoTags": _tags(image, named)}
    layers = [_path(layer.descriptor.digest) for layer in image.best.layers]
    return [
        *_blob_entries(blobs),
        ("index.json", to_json(_index_document(image, image.root, named))),
        ("manifest.json", to_json([{**paths, "Layers": layers}])),
        ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
    ]


def _classic_entries(image: FakeImage, named: bool) -> Entries:
    variant = image.best
    layers = [describe(media_types.OCI_LAYER, layer.diff) for layer in variant.layers]
    config = describe(media_types.OCI_CONFIG, variant.config)
    manifest = to_json(
        {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
    )
    blobs = {Digest.of(manifest): manifest, config.digest: variant.config}
    for number, layer in enumerate(variant.layers):
        blobs[layer.diff_id] = layer.diff
        legacy = to_json({"id": f"legacy {number}", "os": "linux"})  # nothing refers to these
        blobs[Digest.of(legacy)] = legacy
    listed = {
        "Config": _path(config.digest),
        "RepoTags": _tags(image, named),
        "Layers": [_path(layer.digest) for layer in layers],
        "LayerSources": {str(layer.digest): layer.to_json() for layer in layers},
    }
    return [
        *_blob_entries(blobs),
        ("index.json", to_json(_index_document(image, describe(media_types.OCI_MANIFEST, manifest), named))),
        ("manifest.json", to_json([listed]) + b"\n"),
        ("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
        *_repositories(image, layers[-1].digest.hex if layers else "", named),
    ]


def _legacy_entries(image: FakeImage, named: bool) -> Entries:
    variant = image.best
    config = Digest.of(variant.config).hex
    files: dict[str, bytes | str | None] = {f"{config}.json": variant.config}
    first: dict[Digest, str] = {}
    directories = []
    for number, layer in enumerate(variant.layers):
        directory = Digest.of(f"{number} {layer.diff_id}".encode()).hex
        directories.append(directory)
        files |= {
            f"{directory}/": None,
            f"{directory}/VERSION": b"1.0",
            f"{directory}/json": to_json({"id": directory}),
        }
        earlier = first.setdefault(layer.diff_id, directory)
        files[f"{directory}/layer.tar"] = layer.diff if earlier == directory else f"../{earlier}/layer.tar"
    listed = {
        "Config": f"{config}.json",
        "RepoTags": _tags(image, named),
        "Layers": [f"{directory}/layer.tar" for directory in directories],
    }
    return [
        *sorted(files.items()),
        ("manifest.json", to_json([listed]) + b"\n"),
        *_repositories(image, directories[-1] if directories else "", named),
    ]


def _podman_entries(image: FakeImage, named: bool) -> Entries:
    variant = image.best
    config = Digest.of(variant.config).hex
    layers: dict[str, bytes | str | None] = {f"{layer.diff_id.hex}.tar": layer.diff for layer in variant.layers}
    directories: Entries = []
    for number, layer in enumerate(variant.layers):
        directory = Digest.of(f"{number} {layer.diff_id}".encode()).hex
        directories += [
            (f"{directory}/layer.tar", f"../{layer.diff_id.hex}.tar"),
            (f"{directory}/VERSION", b"1.0"),
            (f"{directory}/json", to_json({"id": directory})),
        ]
    listed = {
        "Config": f"{config}.json",
        # In full: on a load, Podman takes a name without a registry for one of its own, `localhost/...`.
        "RepoTags": [image.name] if named else None,
        "Layers": [f"{layer.diff_id.hex}.tar" for layer in variant.layers],
    }
    return [
        *layers.items(),
        (f"{config}.json", variant.config),
        *directories,
        ("manifest.json", to_json([listed])),
        ("repositories", b"{}"),
    ]


def _blob_entries(blobs: Mapping[Digest, bytes]) -> Entries:
    return [("blobs/", None), ("blobs/sha256/", None), *sorted((_path(d), data) for d, data in blobs.items())]


def _index_document(image: FakeImage, root: Descriptor, named: bool) -> dict[str, Any]:
    entry = root.to_json()
    if named:
        entry["annotations"] = {
            "io.containerd.image.name": image.name,
            "org.opencontainers.image.ref.name": image.name.rpartition(":")[2],
        }
    return {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [entry]}


def _repositories(image: FakeImage, top: str, named: bool) -> Entries:
    repository, _, tag = familiar(image.name).rpartition(":")
    return [("repositories", to_json({repository: {tag: top}}) + b"\n")] if named else []


def _tags(image: FakeImage, named: bool) -> list[str] | None:
    return [familiar(image.name)] if named else None


def _path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"
