"""Which requests may decide a push: by what clients were seen to send."""

from __future__ import annotations

import pytest

from k3dreg.web.purpose import may_decide_a_push

INDEX, MANIFEST = "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest"
FOUR = f"{DOCKER}.v2+json, {DOCKER}.list.v2+json, {MANIFEST}, {INDEX}"

CLIENTS = {
    "a node, or docker pull": ("HEAD", f"{FOUR}, */*", False),
    "with weights and capitals": ("HEAD", f"{INDEX};q=0.9,{MANIFEST.upper()}, */*;q=0.1", False),
    "docker push, buildx, nerdctl": ("HEAD", f"{MANIFEST}, */*", True),
    "docker push of an index": ("HEAD", f"{INDEX}, */*", True),
    "crane, ko, kaniko": (
        "HEAD",
        f"{DOCKER}.v1+json,{DOCKER}.v1+prettyjws,{DOCKER}.v2+json,{MANIFEST},{DOCKER}.list.v2+json,{INDEX}",
        True,
    ),
    "regctl, oras": ("HEAD", f"{FOUR}, application/vnd.oci.artifact.manifest.v1+json", True),
    "a type that is no manifest's does not count": ("HEAD", f"{MANIFEST}, application/json, */*", True),
    "the same type twice": ("HEAD", f"{MANIFEST}, {MANIFEST}, */*", True),
    "curl": ("HEAD", "*/*", True),
    "no Accept": ("HEAD", None, True),
    "whoever reads it": ("GET", None, False),
}


@pytest.mark.parametrize(("method", "accept", "expected"), CLIENTS.values(), ids=CLIENTS)
def test_only_a_client_that_is_known_to_pull_decides_no_push(method: str, accept: str | None, expected: bool) -> None:
    assert may_decide_a_push(method, accept) is expected
