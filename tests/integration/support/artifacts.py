"""Artifacts in the form of image manifests (image-spec 1.1, manifest.md, "Guidelines for Artifact Usage")."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence

from tests.integration.support.scripted import ScriptedImage
from tests.integration.support.upstream import CONFIG, MANIFEST, Json, digest_of, to_json

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


def assemble(
    config_type: str, config: bytes, layers: Sequence[tuple[str, bytes]], artifact_type: str = ""
) -> ScriptedImage:
    """The manifest of a config and layers, each of them with its media type."""
    descriptors = [{"mediaType": kind, "digest": digest_of(data), "size": len(data)} for kind, data in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": config_type, "digest": digest_of(config), "size": len(config)},
        "layers": descriptors,
    } | ({"artifactType": artifact_type} if artifact_type else {})
    data = to_json(manifest)
    blobs = {digest_of(blob): ("", blob) for blob in (config, *(layer for _, layer in layers))}
    root = digest_of(data)
    return ScriptedImage(root, {root: (MANIFEST, data), **blobs}, tuple(digest_of(layer) for _, layer in layers))
