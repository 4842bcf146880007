"""A registry client that hides nothing: one request, one answer."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from attrs import field, frozen

CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"

# Seconds without a byte from the registry.
_MAX_WAIT = 60


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def descriptor(media_type: str, data: bytes, algorithm: str = "sha256", /, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data, algorithm), "size": len(data), **more}


def manifest(config: bytes, layers: Iterable[bytes], algorithm: str = "sha256", /, **more: Any) -> bytes:
    """An image manifest; `more` are members of it."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, config, algorithm),
        "layers": [descriptor(LAYER, layer, algorithm) for layer in layers],
    }
    return json.dumps(document | more).encode()


def index(manifests: Iterable[bytes], /, **more: Any) -> bytes:
    entries = [descriptor(MANIFEST, each) for each in manifests]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries} | more).encode()


@frozen
class Answer:
    """`headers` by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=lambda body: repr(body[:300]))

    @property
    def location(self) -> str:
        return self.headers["location"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the first error."""
        return str(self.json["errors"][0]["code"])


class RegistryClient:
    """Requests to the registry at HOST:PORT, each on a connection of its own unless `keep_alive`."""

    def __init__(self, host: str, *, keep_alive: bool = False) -> None:
        self.host = host
        self._keep_alive = keep_alive
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str) -> Answer:
        """Underscores in names of headers stand for hyphens.  An iterator is sent chunked."""
        connection = self._connection or http.client.HTTPConnection(self.host, timeout=_MAX_WAIT)
        try:
            connection.request(method, path, body, {n.replace("_", "-"): v for n, v in headers.items()})
            response = connection.getresponse()
            answer = Answer(response.status, {n.lower(): v for n, v in response.getheaders()}, response.read())
        except BaseException:
            connection.close()
            self._connection = None
            raise
        if self._keep_alive:
            self._connection = connection
        else:
            connection.close()
        return answer

    def begin(self, repository: str, query: str = "") -> Answer:
        return self.ask("POST", f"/v2/{repository}/blobs/uploads/{query}", Content_Length="0")

    def push_blob(self, repository: str, data: bytes, algorithm: str = "sha256") -> str:
        digest = digest_of(data, algorithm)
        answer = self.ask("PUT", with_digest(self.begin(repository).location, digest), data)
        assert answer.status == 201, answer
        return digest

    def push_manifest(self, repository: str, reference: str, data: bytes) -> Answer:
        return self.ask(
            "PUT", f"/v2/{repository}/manifests/{reference}", data, Content_Type=json.loads(data)["mediaType"]
        )

    def push_image(self, repository: str, tag: str, *layers: bytes, **more: Any) -> bytes:
        """With all its parts; returns the manifest."""
        config = b'{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}'
        for data in (config, *layers):
            self.push_blob(repository, data)
        data = manifest(config, layers, **more)
        answer = self.push_manifest(repository, tag, data)
        assert answer.status == 201, answer
        return data

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, **headers)

    def head(self, path: str) -> Answer:
        return self.ask("HEAD", path)

    def delete(self, path: str) -> Answer:
        return self.ask("DELETE", path)


def with_digest(location: str, digest: str) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"
