"""An upstream registry, spoken to over HTTP, and images put together by hand and pushed to it."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Sequence
from typing import Any

from attrs import frozen

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"

Json = dict[str, Any]


@frozen
class Layer:
    """A layer as it lies in the registry, and the digest of the tar in it.  `data` are its bytes."""

    data: bytes
    media_type: str
    diff_id: str

    @property
    def descriptor(self) -> Json:
        return {"mediaType": self.media_type, "digest": digest_of(self.data), "size": len(self.data)}


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def to_json(value: Json) -> bytes:
    # Indented on purpose: whoever writes a manifest anew instead of passing it on is found out.
    return json.dumps(value, indent=3).encode()


class Upstream:
    """A registry at HOST:PORT that takes anonymous pushes."""

    def __init__(self, address: str) -> None:
        self.address = address

    def _request(self, method: str, path: str, body: bytes = b"", content_type: str = "") -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.address, timeout=120)
        connection.request(method, path, body=body, headers={"Content-Type": content_type} if content_type else {})
        response = connection.getresponse()
        response.read()
        return response

    def push_blob(self, repository: str, data: bytes) -> None:
        digest = digest_of(data)
        if self._request("HEAD", f"/v2/{repository}/blobs/{digest}").status == 200:
            return
        location = self._request("POST", f"/v2/{repository}/blobs/uploads/").headers["Location"]
        path = "/" + location.partition("://")[2].partition("/")[2] if "://" in location else location
        path += ("&" if "?" in path else "?") + "digest=" + digest
        response = self._request("PUT", path, data, "application/octet-stream")
        assert response.status == 201, f"blob of {len(data)} bytes: {response.status}"

    def push_manifest(self, repository: str, tag: str, manifest: Json) -> Json:
        """`tag` "" pushes by digest.  Returns the manifest's descriptor."""
        data = to_json(manifest)
        reference = tag or digest_of(data)
        response = self._request("PUT", f"/v2/{repository}/manifests/{reference}", data, manifest["mediaType"])
        assert response.status == 201, f"manifest {repository}:{reference}: {response.status}"
        return {"mediaType": manifest["mediaType"], "digest": digest_of(data), "size": len(data)}

    def push_image(
        self, repository: str, tag: str, layers: Sequence[Layer], command: Sequence[str], architecture: str = "amd64"
    ) -> Json:
        """Push config, layers and manifest.  Returns the manifest's descriptor.

        The manifest's digest comes before those of the layers, unless there are very many: `docker save` sorts by
        digest, and a test that meets an export in its middle needs the manifest to have come already.
        """
        descriptors = [layer.descriptor for layer in layers]
        first = min(descriptor["digest"] for descriptor in descriptors) if len(layers) < 20 else "sha256:g"
        for attempt in range(100_000):
            config = to_json(
                {
                    "architecture": architecture,
                    "os": "linux",
                    "config": {"Cmd": list(command), "Env": ["PATH=/bin"], "Labels": {"attempt": str(attempt)}},
                    "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
                    "history": [{"created_by": f"layer {number}"} for number, _ in enumerate(layers)],
                }
            )
            manifest = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, "digest": digest_of(config), "size": len(config)},
                "layers": descriptors,
            }
            if digest_of(to_json(manifest)) < first:
                break
        else:
            raise AssertionError("no manifest whose digest comes before those of its layers")
        self.push_blob(repository, config)
        for layer in layers:
            self.push_blob(repository, layer.data)
        return self.push_manifest(repository, tag, manifest)

    def push_index(self, repository: str, tag: str, manifests: Sequence[tuple[Json, str]]) -> Json:
        """An index of manifests that are there already, each with its architecture.  Returns its descriptor."""
        entries = [
            {**descriptor, "platform": {"architecture": architecture, "os": "linux"}}
            for descriptor, architecture in manifests
        ]
        return self.push_manifest(repository, tag, {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
