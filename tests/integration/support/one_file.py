"""Images of one file: made, and read again from whatever holds them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable

from tests.integration.support.docker_api import build_context
from tests.integration.support.registry_client import (
    MANIFEST,
    RegistryClient,
    descriptor,
    digest_of,
    index,
    manifest,
)


def archive(content: bytes) -> bytes:
    """A root file system of one file."""
    return build_context({"content": content})


def layout(content: bytes) -> bytes:
    """A tar of an OCI layout (image-spec 1.1, image-layout.md) with one image, tagged `t`."""
    layer = archive(content)
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer)]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    packed = gzip.compress(layer, mtime=0)
    image = manifest(config, [packed])
    entry = descriptor(MANIFEST, image, annotations={"org.opencontainers.image.ref.name": "t"})
    files = {f"blobs/sha256/{digest_of(data)[7:]}": data for data in (config, packed, image)}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = index([], manifests=[entry])
    return build_context(files)


def publish(registry: str, repository: str, content: bytes) -> tuple[str, str]:
    """Push an index with one image to the upstream registry, tagged `t`; return both digests."""
    client, layer = RegistryClient(registry), archive(content)
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer)]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    packed = gzip.compress(layer, mtime=0)
    for data in (config, packed):
        client.push_blob(repository, data)
    image = manifest(config, [packed])
    entry = descriptor(MANIFEST, image, platform={"architecture": "amd64", "os": "linux"})
    top = index([], manifests=[entry])
    for name, data in ((digest_of(image), image), ("t", top)):
        assert client.push_manifest(repository, name, data).status == 201
    return digest_of(top), digest_of(image)


Fetch = Callable[[str, str], bytes]


def content_of(fetch: Fetch, reference: str) -> bytes:
    """What the one file of an image holds; `fetch(kind, reference)` gives its parts, whose digests are checked."""
    data = fetch("manifests", reference)
    document = json.loads(data)
    assert reference in ("t", digest_of(data))
    if "manifests" in document:
        found = [each for each in document["manifests"] if each.get("platform", {}).get("os") != "unknown"]
        return content_of(fetch, found[0]["digest"])
    layers = []
    for part in (document["config"], *document["layers"]):
        layers.append(fetch("blobs", part["digest"]))
        assert (digest_of(layers[-1]), len(layers[-1])) == (part["digest"], part["size"])
    layer = layers[-1]
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer)) as tar:
        file = tar.extractfile("content")
        assert file is not None
        return file.read()


def from_registry(client: RegistryClient, repository: str, ns: str = "") -> Fetch:
    """`ns`: the registry that the client says it means."""

    def fetch(kind: str, reference: str) -> bytes:
        answer = client.get(f"/v2/{repository}/{kind}/{reference}" + (f"?ns={ns}" if ns else ""))
        assert answer.status == 200, answer
        assert answer.headers["docker-content-digest"] == digest_of(answer.body)
        return answer.body

    return fetch
