"""The four categories of the specification, one after the other in a single repository, cleared away after each.

The public suite of the 1.1 release works so: what one category leaves is what the next one finds, and what is cleared
away must have been there.  Everything is taken away in either order, manifests first or blobs first.
"""

from __future__ import annotations

import pytest

from tests.integration.conformance.checks import blob, check_manifest, check_pulled
from tests.integration.support.registry_client import (
    EMPTY,
    INDEX,
    MANIFEST,
    RegistryClient,
    descriptor,
    digest_of,
    index,
    manifest,
)

LAYER = blob()
DUMMY = digest_of(b"hello world")
KEY = "org.opencontainers.conformance.test"


class Category:
    """What one category has pushed."""

    def __init__(self, client: RegistryClient, repo: str) -> None:
        self.client = client
        self.repo = repo
        self.base = f"/v2/{repo}"
        self.config = b'{"author": "%s"}' % digest_of(blob())[7:23].encode()
        self.manifest = manifest(self.config, [LAYER])
        self.digest = digest_of(self.manifest)

    def push_parts(self) -> None:
        for data in (self.config, LAYER):
            self.client.push_blob(self.repo, data)

    def push(self, reference: str, data: bytes) -> str:
        """Returns the subject, "" for none."""
        answer = self.client.push_manifest(self.repo, reference, data)
        assert answer.status == 201, answer
        return answer.headers.get("oci-subject", "")

    def tags(self, query: str = "") -> list[str]:
        answer = self.client.get(f"{self.base}/tags/list{query}")
        assert answer.status == 200
        found: list[str] = answer.json["tags"]
        return found

    def clear_away(self, manifests: list[str], blobs: list[bytes], manifests_first: bool) -> None:
        paths = [f"{self.base}/manifests/{reference}" for reference in manifests]
        others = [f"{self.base}/blobs/{digest_of(data)}" for data in blobs]
        for path in (*paths, *others) if manifests_first else (*others, *paths):
            assert self.client.delete(path).status == 202, path
            assert self.client.head(path).status == 404, path


@pytest.mark.parametrize("manifests_first", [True, False], ids=["manifests-first", "blobs-first"])
def test_the_four_categories_in_one_repository(client: RegistryClient, repo: str, manifests_first: bool) -> None:
    pull(Category(client, repo), manifests_first)
    push(Category(client, repo), manifests_first)
    discovery(Category(client, repo), manifests_first)
    management(Category(client, repo))
    assert client.get(f"/v2/{repo}/tags/list").status in (200, 404)


def pull(here: Category, manifests_first: bool) -> None:
    here.push_parts()
    here.push("tagtest0", here.manifest)
    assert here.tags() == ["tagtest0"]
    for path in (f"blobs/{DUMMY}", "manifests/.INVALID_MANIFEST_NAME"):
        assert here.client.head(f"{here.base}/{path}").status == 404
        assert here.client.get(f"{here.base}/{path}").status == 404
    check_pulled(here.client, here.repo, here.config, digest_of(here.config))
    for reference in (here.digest, "tagtest0"):
        check_manifest(here.client, here.repo, reference, here.manifest, here.digest, MANIFEST)
    path = f"{here.base}/manifests/sha256:totallywrong"
    answer = here.client.ask("PUT", path, b"blablabla", Content_Type=MANIFEST)
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    here.clear_away([here.digest], [here.config, LAYER], manifests_first)


def push(here: Category, manifests_first: bool) -> None:
    here.push_parts()
    for number in range(4):
        here.push(f"test{number}", here.manifest)
    # It does not say what it is: that is in the header alone.
    empty = manifest(here.config, []).replace(b'"mediaType": "%s", ' % MANIFEST.encode(), b"", 1)
    path = f"{here.base}/manifests/emptylayer"
    assert here.client.ask("PUT", path, empty, Content_Type=MANIFEST).status == 201
    check_manifest(here.client, here.repo, digest_of(empty), empty, digest_of(empty), MANIFEST)
    crossmount = f"{here.repo}/crossmount"
    assert here.client.begin(crossmount, f"?mount={DUMMY}").status == 202
    mounted = here.client.begin(crossmount, f"?mount={digest_of(LAYER)}&from={here.repo}")
    assert (mounted.status, mounted.location) == (201, f"/v2/{crossmount}/blobs/{digest_of(LAYER)}")
    assert here.client.get(mounted.location).body == LAYER
    here.clear_away([here.digest, digest_of(empty)], [here.config, LAYER], manifests_first)
    check_pulled(here.client, crossmount, LAYER, digest_of(LAYER))
    assert here.client.delete(mounted.location).status == 202


def discovery(here: Category, manifests_first: bool) -> None:
    tags = [f"test{number}" for number in range(4)]
    here.push_parts()
    for tag in tags:
        here.push(tag, here.manifest)
    later, absent = Category(here.client, here.repo), Category(here.client, here.repo)
    about = descriptor(MANIFEST, later.manifest)
    payloads = {"a": b"NHL Peanut Butter on my NHL bagel", "b": b"NBA Strawberry Jam on my NBA croissant"}

    def by_config(name: str) -> bytes:
        parts = {"config": descriptor(f"example/{name}", payloads[name]), "layers": [descriptor(EMPTY, b"{}")]}
        return manifest(b"", [], subject=about, annotations={KEY: f"config {name}"}, **parts)

    def by_type(name: str, subject: dict[str, object], notes: dict[str, str]) -> bytes:
        parts = {"config": descriptor(EMPTY, b"{}"), "layers": [descriptor(f"example/{name}", payloads[name])]}
        return manifest(b"", [], artifactType=f"example/{name}", subject=subject, annotations=notes, **parts)

    referrers = {name: by_config(name) for name in payloads}
    referrers |= {f"layer {name}": by_type(name, about, {KEY: f"layer {name}"}) for name in payloads}
    both = [referrers["a"], referrers["layer a"]]
    referrers["index"] = index(both, artifactType="example/stand", subject=about, annotations={KEY: "index"})
    orphan = by_type("b", descriptor(MANIFEST, absent.manifest), {})
    # Some are pushed before what they are about, some after, and the subject of one never is.
    for data in (b"{}", payloads["a"]):
        here.client.push_blob(here.repo, data)
    for name in ("a", "layer a", "index"):
        assert here.push(digest_of(referrers[name]), referrers[name]) == later.digest
    later.push_parts()
    later.push("tagtest0", later.manifest)
    here.client.push_blob(here.repo, payloads["b"])
    for name in ("b", "layer b"):
        assert here.push(digest_of(referrers[name]), referrers[name]) == later.digest
    assert here.push(digest_of(orphan), orphan) == absent.digest

    everything = ["tagtest0", *tags]
    assert here.tags() == everything
    assert here.tags("?n=2") == everything[:2]
    assert here.tags(f"?n=2&last={everything[1]}") == everything[2:4]
    expected = {digest_of(data): name for name, data in referrers.items()}
    for subject, wanted, found in (
        (DUMMY, "", set()),
        (later.digest, "", set(expected)),
        (later.digest, "example/a", {digest_of(data) for data in both}),
        (absent.digest, "", {digest_of(orphan)}),
    ):
        query = f"?artifactType={wanted}" if wanted else ""
        answer = here.client.get(f"{here.base}/referrers/{subject}{query}")
        assert (answer.status, answer.headers["content-type"]) == (200, INDEX)
        assert answer.headers.get("oci-filters-applied", "") == ("artifactType" if wanted else "")
        assert {each["digest"] for each in answer.json["manifests"]} == found
        for each in answer.json["manifests"]:
            if each["digest"] in expected:
                name = expected[each["digest"]]
                assert each["annotations"] == {KEY: name if " " in name or name == "index" else f"config {name}"}
    manifests = [here.digest, later.digest, *map(digest_of, (*referrers.values(), orphan))]
    blobs = [here.config, later.config, LAYER, b"{}", *payloads.values()]
    here.clear_away(manifests, blobs, manifests_first)
    assert here.client.get(f"{here.base}/referrers/{later.digest}").json["manifests"] == []


def management(here: Category) -> None:
    here.push_parts()
    here.push("tagtest0", here.manifest)
    assert here.tags() == ["tagtest0"]
    assert here.client.delete(f"{here.base}/manifests/tagtest0").status == 202
    check_manifest(here.client, here.repo, here.digest, here.manifest, here.digest, MANIFEST)
    assert here.client.delete(f"{here.base}/manifests/{here.digest}").status == 202
    assert here.client.get(f"{here.base}/manifests/{here.digest}").status == 404
    assert here.tags() == []
    for data in (here.config, LAYER):
        assert here.client.delete(f"{here.base}/blobs/{digest_of(data)}").status == 202
    assert here.client.get(f"{here.base}/blobs/{digest_of(here.config)}").status == 404
