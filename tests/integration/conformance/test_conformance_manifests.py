"""Pushing manifests, content discovery and content management, by the same specification.

Over HTTP against the real daemon; each test is named after the section whose statements it checks.
"""

from __future__ import annotations

import pytest

from tests.integration.conformance.checks import (
    ALGORITHMS,
    MISSING,
    NOBODY,
    blob,
    check_manifest,
    check_pulled,
)
from tests.integration.support.daemon import running
from tests.integration.support.registry_client import (
    CONFIG,
    EMPTY,
    INDEX,
    LAYER,
    MANIFEST,
    RegistryClient,
    descriptor,
    digest_of,
    index,
    manifest,
)

# -- Push: manifests ----------------------------------------------------------------------------


LARGE = {"annotations": {f"large-annotation-{number}": "A" * 10_000 for number in range(390)}}
KINDS = {
    "image": lambda config, layer: manifest(config, [layer]),
    "no layers": lambda config, layer: manifest(config, []),
    "null layers": lambda config, layer: manifest(config, [], layers=None),
    "large": lambda config, layer: manifest(config, [layer], **LARGE),
    "unknown members": lambda config, layer: manifest(config, [layer], **{"org.example": {"a": [1]}}),
    "artifact": lambda config, layer: manifest(
        config, [], artifactType="a/b", config=descriptor(EMPTY, config), layers=[descriptor("a/c", layer)]
    ),
    "artifact without layers": lambda config, layer: manifest(
        config, [], artifactType="a/b", config=descriptor(EMPTY, config), layers=[descriptor(EMPTY, config)]
    ),
    "inline data": lambda config, layer: manifest(config, [], config=descriptor(CONFIG, config, data="e30=")),
    "not distributable": lambda config, layer: manifest(
        config,
        [],
        layers=[
            descriptor(
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", b"elsewhere", urls=["https://x.test"]
            ),
            descriptor(LAYER, layer),
        ],
    ),
    "subject that is not here": lambda config, layer: manifest(config, [layer], subject=descriptor(MANIFEST, b"no")),
    "odd white space": lambda config, layer: manifest(config, [layer]).replace(b" ", b"\n  \t") + b"\n",
}


@pytest.mark.parametrize("kind", KINDS)
def test_pushing_manifests_keeps_every_byte(client: RegistryClient, repo: str, kind: str) -> None:
    config, layer = b"{}", blob()
    for data in (config, layer):
        client.push_blob(repo, data)
    data = KINDS[kind](config, layer)
    for reference, answer in (
        (digest_of(data), client.push_manifest(repo, digest_of(data), data)),
        ("tag", client.push_manifest(repo, "tag", data)),
    ):
        assert (answer.status, answer.headers["docker-content-digest"]) == (201, digest_of(data)), answer
        assert client.get(answer.location).body == data
        check_manifest(client, repo, reference, data, digest_of(data), MANIFEST)
    assert ("oci-subject" in answer.headers) == (kind == "subject that is not here")


def test_pushing_indexes_and_indexes_of_indexes(client: RegistryClient, repo: str) -> None:
    image = client.push_image(repo, "image", blob())
    one = index([image], artifactType="a/b", subject=descriptor(MANIFEST, image))
    answer = client.push_manifest(repo, "one", one)
    assert (answer.status, answer.headers["oci-subject"]) == (201, digest_of(image))
    nested = index([], manifests=[descriptor(INDEX, one)])
    for tag, data in (("nested", nested), ("empty", index([])), ("null", index([], manifests=None))):
        assert client.push_manifest(repo, tag, data).status == 201
        check_manifest(client, repo, tag, data, digest_of(data), INDEX)


def test_pushing_manifests_by_sha512(client: RegistryClient, repo: str) -> None:
    config = b"{}"
    client.push_blob(repo, config, "sha512")
    data = manifest(config, [], "sha512")
    digest = digest_of(data, "sha512")
    assert client.push_manifest(repo, digest, data).headers["docker-content-digest"] == digest
    check_manifest(client, repo, digest, data, digest, MANIFEST)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_next_specification_a_manifest_is_tagged_as_it_is_pushed(
    client: RegistryClient, repo: str, algorithm: str
) -> None:
    client.push_blob(repo, b"{}")
    data = manifest(b"{}", [])
    digest = digest_of(data, algorithm)
    answer = client.push_manifest(repo, f"{digest}?tag=a&tag=b", data)
    assert (answer.status, set(answer.headers["oci-tag"].split(", "))) == (201, {"a", "b"})
    for tag in ("a", "b"):
        check_manifest(client, repo, tag, data, digest, MANIFEST)


def test_manifests_that_are_not_what_they_are_called_are_400(client: RegistryClient, repo: str) -> None:
    client.push_blob(repo, b"{}")
    data = manifest(b"{}", [])
    for reference, body, media_type, code in (
        (digest_of(data), data + b"  ", MANIFEST, "DIGEST_INVALID"),
        ("sha256:baddigeststring", data, MANIFEST, "DIGEST_INVALID"),
        ("t", data, INDEX, "MANIFEST_INVALID"),
        ("t", b"{", MANIFEST, "MANIFEST_INVALID"),
        ("t", b"[1]", MANIFEST, "MANIFEST_INVALID"),
        ("t", b"", MANIFEST, "MANIFEST_INVALID"),
        ("t", data, "text/plain", "MANIFEST_INVALID"),
        ("t", manifest(b"{}", [b"nobody pushed this"]), MANIFEST, "MANIFEST_BLOB_UNKNOWN"),
        ("t", index([data + b" "]), INDEX, "MANIFEST_BLOB_UNKNOWN"),
    ):
        answer = client.ask("PUT", f"/v2/{repo}/manifests/{reference}", body, Content_Type=media_type)
        assert (answer.status, answer.code) == (400, code), answer
    assert client.get(f"/v2/{repo}/manifests/t").status == 404


def test_a_manifest_of_four_mib_is_taken_and_a_larger_one_is_413(client: RegistryClient, repo: str) -> None:
    client.push_blob(repo, b"{}")
    data = manifest(b"{}", [])
    whole = data + b" " * (4 * 1024 * 1024 - len(data))
    assert client.push_manifest(repo, "t", whole).status == 201
    assert client.push_manifest(repo, "t", whole + b" ").status == 413
    check_manifest(client, repo, "t", whole, digest_of(whole), MANIFEST)


# -- Content discovery --------------------------------------------------------------------------


def test_listing_tags(client: RegistryClient, repo: str) -> None:
    path = f"/v2/{repo}/tags/list"
    assert client.get(path).status == 404
    data = client.push_image(repo, "test1")
    for tag in ("test0", "test3", "Test2", "a"):
        client.push_manifest(repo, tag, data)
    tags = ["a", "test0", "test1", "Test2", "test3"]
    assert client.get(path).json == {"name": repo, "tags": tags}
    assert client.get(f"{path}?n=2").json["tags"] == tags[:2]
    assert client.get(f"{path}?n=0").json["tags"] == []
    assert client.get(f"{path}?last=test0").json["tags"] == tags[2:]
    assert client.get(f"{path}?n=2&last=test0").json["tags"] == tags[2:4]
    assert client.get(f"{path}?last=between").json["tags"] == tags[1:]
    assert client.get(f"{path}?last=zzz").json["tags"] == []
    found, link = [], f"{path}?n=2"
    while link:
        answer = client.get(link)
        found += answer.json["tags"]
        link = answer.headers.get("link", "").partition(">")[0].lstrip("<")
    assert found == tags
    assert {repo} <= set(client.get("/v2/_catalog").json["repositories"])


def test_listing_referrers(client: RegistryClient, repo: str) -> None:
    subject = client.push_image(repo, "image", blob())
    path = f"/v2/{repo}/referrers/{digest_of(subject)}"
    empty = client.get(path)
    assert (empty.status, empty.headers["content-type"], empty.json["manifests"]) == (200, INDEX, [])
    assert (empty.json["schemaVersion"], empty.json["mediaType"]) == (2, INDEX)
    about, notes = descriptor(MANIFEST, subject), {"org.example": "hello"}
    plain = client.push_image(repo, "plain", subject=about)
    typed = client.push_image(repo, "typed", subject=about, artifactType="a/b", annotations=notes)
    many = index([], subject=about, artifactType="a/c", annotations=notes)
    assert client.push_manifest(repo, digest_of(many), many).status == 201
    expected = {
        digest_of(plain): descriptor(MANIFEST, plain, artifactType=CONFIG),
        digest_of(typed): descriptor(MANIFEST, typed, artifactType="a/b", annotations=notes),
        digest_of(many): descriptor(INDEX, many, artifactType="a/c", annotations=notes),
    }
    assert {each["digest"]: each for each in client.get(path).json["manifests"]} == expected
    filtered = client.get(f"{path}?artifactType=a/b")
    assert filtered.json["manifests"] == [expected[digest_of(typed)]]
    assert filtered.headers["oci-filters-applied"] == "artifactType"
    assert client.get(f"{path}?artifactType=none").json["manifests"] == []
    assert client.delete(f"/v2/{repo}/manifests/{digest_of(typed)}").status == 202
    assert len(client.get(path).json["manifests"]) == 2


def test_listing_referrers_in_pages_when_they_are_more_than_a_client_reads_at_once(
    client: RegistryClient, repo: str
) -> None:
    subject = client.push_image(repo, "image")
    client.push_blob(repo, b"{}")
    pushed = set()
    for number in range(5):
        notes = {"org.example": str(number) * 1_500_000}
        data = manifest(
            b"{}", [], subject=descriptor(MANIFEST, subject), artifactType=f"a/{number % 2}", annotations=notes
        )
        assert client.push_manifest(repo, digest_of(data), data).status == 201
        pushed.add((digest_of(data), f"a/{number % 2}"))
    path = f"/v2/{repo}/referrers/{digest_of(subject)}"
    for link, expected in ((path, pushed), (f"{path}?artifactType=a/1", {each for each in pushed if each[1] == "a/1"})):
        found, pages = [], 0
        while link:
            answer = client.get(link)
            assert answer.status == 200
            assert len(answer.body) <= 4 * 1024 * 1024
            found += [(each["digest"], each["artifactType"]) for each in answer.json["manifests"]]
            link, pages = answer.headers.get("link", "").partition(">")[0].lstrip("<"), pages + 1
        assert (sorted(found), pages) == (sorted(expected), (len(expected) + 1) // 2)


# -- Content management -------------------------------------------------------------------------


def test_deleting_tags_and_manifests(client: RegistryClient, repo: str) -> None:
    data = client.push_image(repo, "a", blob())
    client.push_manifest(repo, "b", data)
    path = f"/v2/{repo}/manifests"
    assert client.delete(f"{path}/a").status == 202
    assert [client.head(f"{path}/{name}").status for name in ("a", "b", digest_of(data))] == [404, 200, 200]
    assert client.delete(f"{path}/{digest_of(data)}").status == 202
    for name in ("a", "b", digest_of(data)):
        assert client.get(f"{path}/{name}").status == 404
        assert client.delete(f"{path}/{name}").status == 404
    # What was deleted can be pushed again.
    assert client.push_manifest(repo, "a", data).status == 201
    check_manifest(client, repo, "a", data, digest_of(data), MANIFEST)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_deleting_blobs(client: RegistryClient, repo: str, algorithm: str) -> None:
    data = blob()
    path = f"/v2/{repo}/blobs/{client.push_blob(repo, data, algorithm)}"
    assert client.delete(path).status == 202
    for method in ("GET", "HEAD", "DELETE"):
        assert client.ask(method, path).status == 404
    check_pulled(client, repo, data, client.push_blob(repo, data, algorithm))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "manifests/t"), ("PATCH", "manifests/t"), ("PUT", f"blobs/{MISSING}"), ("POST", f"blobs/{MISSING}"),
        ("GET", "blobs/uploads/"), ("PUT", "blobs/uploads/"), ("DELETE", "tags/list"), ("POST", f"referrers/{MISSING}"),
    ],
)  # fmt: skip
def test_methods_that_a_route_does_not_have_are_405(client: RegistryClient, repo: str, method: str, path: str) -> None:
    answer = client.ask(method, f"/v2/{repo}/{path}", b"x" if method in ("POST", "PUT", "PATCH") else None)
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    assert method not in answer.headers["allow"].split(", ")


def test_deleting_can_be_turned_off_as_k3d_and_ctlptl_say_it(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_STORAGE_DELETE_ENABLED", "false")
    with running(NOBODY, tmp_path_factory.mktemp("no-deleting")) as daemon:
        client = RegistryClient(daemon.host)
        data = client.push_image("app", "t", blob())
        for path in ("manifests/t", f"manifests/{digest_of(data)}", f"blobs/{MISSING}"):
            assert client.delete(f"/v2/app/{path}").status == 405
        check_manifest(client, "app", "t", data, digest_of(data), MANIFEST)
