"""What several statements of the specification have in common."""

from __future__ import annotations

import os

from tests.integration.support.registry_client import (
    INDEX,
    MANIFEST,
    Answer,
    RegistryClient,
)
from tests.integration.support.rig import EngineAddress

ALGORITHMS = ("sha256", "sha512")
MISSING = "sha256:" + "0" * 64
NOBODY = EngineAddress("nobody", "unix:///nonexistent/docker.sock")


def blob(size: int = 512) -> bytes:
    return os.urandom(size)


def check_pulled(client: RegistryClient, repo: str, data: bytes, digest: str) -> None:
    """ "Pulling blobs", "Checking if content exists in the registry"."""
    path = f"/v2/{repo}/blobs/{digest}"
    got, head = client.get(path), client.head(path)
    assert (got.status, got.body, got.headers["docker-content-digest"]) == (200, data, digest)
    assert (head.status, head.body) == (200, b"")
    assert {**head.headers, **of_the_answer(got)} == got.headers
    assert head.headers["content-length"] == str(len(data))


def of_the_answer(answer: Answer) -> dict[str, str]:
    """The headers that say which answer it is, and so differ from one to the next."""
    return {name: answer.headers[name] for name in ("date", "x-request-id")}


def check_session(answer: Answer, status: int, received: int) -> None:
    """Every answer about a session says where it is and what it has."""
    assert answer.status == status, answer
    assert answer.location.startswith("/v2/")
    assert answer.headers["range"] == f"0-{max(0, received - 1)}"


def check_manifest(
    client: RegistryClient, repo: str, reference: str, data: bytes, digest: str, media_type: str
) -> None:
    """ "Pulling manifests"."""
    path = f"/v2/{repo}/manifests/{reference}"
    got, head = client.get(path, Accept=f"{INDEX}, {MANIFEST}"), client.head(path)
    assert (got.status, got.body, got.headers["content-type"]) == (200, data, media_type)
    assert got.headers["docker-content-digest"] == digest
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(data))
