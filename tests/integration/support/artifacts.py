"""Artifacts in the form of image manifests (image-spec 1.1, manifest.md, "Guidelines for Artifact Usage")."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence

from tests.integration.support.docker_api import Docker, build_context
from tests.integration.support.images import LayerMaker
from tests.integration.support.scripted import ScriptedImage
from tests.integration.support.upstream import CONFIG, MANIFEST, Json, digest_of, to_json

FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
SIGNATURE_LAYER = "application/vnd.dev.cosign.simplesigning.v1+json"


def an_artifact(
    config_type: str, layer_types: Sequence[str], config: Json | None = None, artifact_type: str = ""
) -> ScriptedImage:
    """An artifact like no other: its layers are random bytes, its config is `config` or unique, too."""
    layers = [(media_type, os.urandom(2000)) for media_type in layer_types]
    return assemble(config_type, to_json({"id": uuid.uuid4().hex} if config is None else config), layers, artifact_type)


def a_signature() -> ScriptedImage:
    """As cosign keeps a signature: an image's config, and a layer that is no archive."""
    layer = to_json({"critical": {"identity": {"docker-reference": uuid.uuid4().hex}}})
    config = to_json(
        {"architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]}}
    )
    return assemble(CONFIG, config, [(SIGNATURE_LAYER, layer)])


def a_model() -> ScriptedImage:
    """As Docker's model runner keeps a model: a config with the digests of layers that are no archives."""
    layer = os.urandom(2000)
    config = to_json(
        {"config": {"format": "gguf"}, "rootfs": {"type": "rootfs", "diff_ids": [digest_of(layer)]}},
    )
    return assemble(
        "application/vnd.docker.ai.model.config.v0.1+json", config, [("application/vnd.docker.ai.gguf.v3", layer)]
    )


def with_foreign_layer(image: ScriptedImage) -> ScriptedImage:
    """The image with one more layer, which may not be distributed and whose bytes are nowhere."""
    manifest, absent = json.loads(image.contents[image.root][1]), os.urandom(100)
    config = json.loads(image.contents[manifest["config"]["digest"]][1])
    config["rootfs"]["diff_ids"].append(digest_of(absent + b"unpacked"))
    layers = [(layer["mediaType"], image.contents[layer["digest"]][1]) for layer in manifest["layers"]]
    foreign = {"mediaType": FOREIGN_LAYER, "digest": digest_of(absent), "size": 100, "urls": ["https://x.example/"]}
    return assemble(CONFIG, to_json(config), layers, absent=[foreign])


def load_layout(docker: Docker, name: str, image: ScriptedImage) -> None:
    """`docker load` of an OCI layout.  Docker keeps the content, also of what it cannot unpack."""
    media_type, data = image.contents[image.root]
    annotations = {"io.containerd.image.name": name}
    root = {"mediaType": media_type, "digest": image.root, "size": len(data), "annotations": annotations}
    files = {f"blobs/{digest.replace(':', '/')}": blob for digest, (_, blob) in image.contents.items()}
    files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    files["index.json"] = to_json({"schemaVersion": 2, "manifests": [root]})
    docker.call("POST", "/images/load", body=build_context(files), content_type="application/x-tar")


def load_classic(docker: Docker, name: str, config: Json) -> None:
    """`docker load` of an image with a small layer and this config, as `docker save` of every engine writes it."""
    maker = LayerMaker({})
    maker.file("x", os.urandom(5000))
    layer = maker.layer(None)
    root_fs = {"type": "layers", "diff_ids": [layer.diff_id]}
    data = to_json({"architecture": "amd64", "os": "linux", "rootfs": root_fs, **config})
    image = {"Config": "config.json", "RepoTags": [name], "Layers": ["layer/layer.tar"]}
    files = {"config.json": data, "layer/layer.tar": layer.data, "manifest.json": json.dumps([image]).encode()}
    docker.call("POST", "/images/load", body=build_context(files), content_type="application/x-tar")


def assemble(
    config_type: str,
    config: bytes,
    layers: Sequence[tuple[str, bytes]],
    artifact_type: str = "",
    absent: Sequence[Json] = (),
) -> ScriptedImage:
    """The manifest of a config and layers, each of them with its media type; `absent` are more layers' descriptors."""
    descriptors: list[Json] = [
        {"mediaType": kind, "digest": digest_of(data), "size": len(data)} for kind, data in layers
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": config_type, "digest": digest_of(config), "size": len(config)},
        "layers": [*descriptors, *absent],
    } | ({"artifactType": artifact_type} if artifact_type else {})
    data = to_json(manifest)
    blobs = {digest_of(blob): ("", blob) for blob in (config, *(layer for _, layer in layers))}
    root = digest_of(data)
    return ScriptedImage(root, {root: (MANIFEST, data), **blobs}, tuple(digest_of(layer) for _, layer in layers))
