"""What the OCI Distribution Specification says, or leaves to a registry, and its conformance suites do not try."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.integration.support.daemon import Daemon, running
from tests.integration.support.registry_client import (
    INDEX,
    MANIFEST,
    Answer,
    RegistryClient,
    descriptor,
    digest_of,
    index,
    manifest,
    with_digest,
)
from tests.integration.support.rig import EngineAddress

ALGORITHMS = ("sha256", "sha512")
MISSING = "sha256:" + "0" * 64
NO_ENGINE = EngineAddress("none", "unix:///nonexistent/docker.sock")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without an engine."""
    with running(NO_ENGINE, tmp_path_factory.mktemp("beyond-conformance")) as daemon:
        yield daemon


@pytest.fixture(params=[False, True], ids=["connection-each", "keep-alive"])
def client(alone: Daemon, request: pytest.FixtureRequest) -> RegistryClient:
    return RegistryClient(alone.host, keep_alive=request.param)


@pytest.fixture
def repo(request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    return f"conformance/r{digest_of(request.node.nodeid.encode())[7:27]}"


def blob(size: int = 512) -> bytes:
    return os.urandom(size)


def check_pulled(client: RegistryClient, repo: str, data: bytes, digest: str) -> None:
    """Check that GET and HEAD of the blob answer with it."""
    path = f"/v2/{repo}/blobs/{digest}"
    got, head = client.get(path), client.head(path)
    assert (got.status, got.body, got.headers["docker-content-digest"]) == (200, data, digest)
    assert (head.status, head.body) == (200, b"")
    assert {**head.headers, **of_the_answer(got)} == got.headers
    assert head.headers["content-length"] == str(len(data))


def of_the_answer(answer: Answer) -> dict[str, str]:
    """Return the headers that differ from one response to the next."""
    return {name: answer.headers[name] for name in ("date", "x-request-id")}


def check_session(answer: Answer, status: int, received: int) -> None:
    """Check that a response about an upload session says where the session is and what it has received."""
    assert answer.status == status, answer
    assert answer.location.startswith("/v2/")
    assert answer.headers["range"] == f"0-{max(0, received - 1)}"


def check_manifest(
    client: RegistryClient, repo: str, reference: str, data: bytes, digest: str, media_type: str
) -> None:
    """Check that GET and HEAD of the manifest answer with it."""
    path = f"/v2/{repo}/manifests/{reference}"
    got, head = client.get(path, Accept=f"{INDEX}, {MANIFEST}"), client.head(path)
    assert (got.status, got.body, got.headers["content-type"]) == (200, data, media_type)
    assert got.headers["docker-content-digest"] == digest
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(data))


def test_end_1_says_that_this_is_a_registry(client: RegistryClient) -> None:
    answer = client.get("/v2/")
    assert (answer.status, answer.headers["docker-distribution-api-version"]) == (200, "registry/2.0")


@pytest.mark.parametrize("path", ["manifests/sha256:baddigeststring", "blobs/sha256:baddigeststring", "blobs/md5:00"])
def test_digests_are_parsed(client: RegistryClient, repo: str, path: str) -> None:
    answer = client.get(f"/v2/{repo}/{path}")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize("name", ["UPPER", "a//b", "-a", "a/", "a..b", "a" * 256, "%2e%2e/etc"])
def test_names_are_parsed(client: RegistryClient, name: str) -> None:
    assert client.get(f"/v2/{name}/manifests/t").status in (400, 404)
    assert client.begin(name).status in (400, 404)


def test_a_chunk_that_is_sent_again_is_416_and_the_session_goes_on(client: RegistryClient, repo: str) -> None:
    data = blob(2000)
    first = client.begin(repo).location
    for status in (202, 416):
        check_session(client.ask("PATCH", first, data[:1001], Content_Range="0-1000"), status, 1001)
    # The place as it was at first still tells where the upload is.
    stale = client.get(first)
    check_session(stale, 204, 1001)
    check_session(client.ask("PATCH", stale.location, data[1001:], Content_Range="1001-1999"), 202, 2000)
    answer = client.ask("PUT", with_digest(first, digest_of(data)), Content_Length="0")
    assert (answer.status, answer.location) == (201, f"/v2/{repo}/blobs/{digest_of(data)}")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("way", ["post", "put", "stream", "chunks"])
def test_a_blob_that_does_not_match_its_digest_is_400_and_never_visible(
    client: RegistryClient, repo: str, algorithm: str, way: str
) -> None:
    data = blob(2000)
    digest = digest_of(data, algorithm)
    wrong, location = data + b"oh no", client.begin(repo).location
    if way == "post":
        answer = client.ask("POST", f"/v2/{repo}/blobs/uploads/?digest={digest}", wrong)
    elif way == "put":
        answer = client.ask("PUT", with_digest(location, digest), wrong)
    else:
        headers = {} if way == "stream" else {"Content_Range": f"0-{len(wrong) - 1}"}
        assert client.ask("PATCH", location, wrong, **headers).status == 202
        answer = client.ask("PUT", with_digest(location, digest), Content_Length="0")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    for each in (digest, digest_of(wrong, algorithm)):
        assert client.get(f"/v2/{repo}/blobs/{each}").status == 404


@pytest.mark.parametrize(
    "query", ["?digest=sha256:bad", "?mount=sha256:bad&from=x", "?digest=md5:00", "?digest-algorithm=md5"]
)
def test_an_upload_of_an_invalid_digest_is_400(client: RegistryClient, repo: str, query: str) -> None:
    answer = client.begin(repo, query)
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_next_specification_the_algorithm_of_the_digest_may_be_said_first(
    client: RegistryClient, repo: str, algorithm: str
) -> None:
    for said in ALGORITHMS:
        data = blob()
        digest = digest_of(data, algorithm)
        begun = client.begin(repo, f"?digest-algorithm={said}")
        check_session(begun, 202, 0)
        assert client.ask("PUT", with_digest(begun.location, digest), data).status == 201
        check_pulled(client, repo, data, digest)


def test_an_upload_ends_with_its_digest(client: RegistryClient, repo: str) -> None:
    location = client.begin(repo).location
    assert client.ask("PUT", location, b"x").status == 400
    assert client.get(location).status == 204


def test_chunks_whose_length_is_not_what_their_range_says(client: RegistryClient, repo: str) -> None:
    location = client.begin(repo).location
    assert client.ask("PATCH", location, b"abc", Content_Range="0-9").code == "SIZE_INVALID"
    assert client.ask("PATCH", location, b"abc", Content_Range="x-9").code == "BLOB_UPLOAD_INVALID"
    check_session(client.get(location), 204, 0)


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
def test_unknown_sessions_are_404(client: RegistryClient, repo: str, method: str) -> None:
    path = with_digest(f"/v2/{repo}/blobs/uploads/made-by-no-client", MISSING)
    answer = client.ask(method, path, b"x" if method in ("PATCH", "PUT") else None)
    assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_a_session_is_not_another_repositorys(client: RegistryClient, repo: str) -> None:
    location = client.begin(repo).location
    assert client.get(location.replace(repo, f"{repo}/other")).status == 404


def test_mounting_what_is_nowhere_begins_an_upload(client: RegistryClient, repo: str) -> None:
    data = blob()
    answer = client.begin(repo, f"?mount={digest_of(data)}&from={repo}/source")
    check_session(answer, 202, 0)
    assert client.ask("PUT", with_digest(answer.location, digest_of(data)), data).status == 201


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
        ("t", manifest(b"{}", [b"no client pushed this"]), MANIFEST, "MANIFEST_BLOB_UNKNOWN"),
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
    with running(NO_ENGINE, tmp_path_factory.mktemp("no-deleting")) as daemon:
        client = RegistryClient(daemon.host)
        data = client.push_image("app", "t", blob())
        for path in ("manifests/t", f"manifests/{digest_of(data)}", f"blobs/{MISSING}"):
            assert client.delete(f"/v2/app/{path}").status == 405
        check_manifest(client, "app", "t", data, digest_of(data), MANIFEST)
