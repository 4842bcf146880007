"""Pulling, and pushing blobs, by the OCI Distribution Specification 1.1 (and, where marked, its successor).

Over HTTP against the real daemon; each test is named after the section whose statements it checks.
"""

from __future__ import annotations

import pytest

from tests.integration.conformance.checks import (
    ALGORITHMS,
    MISSING,
    blob,
    check_pulled,
    check_session,
)
from tests.integration.support.registry_client import (
    Answer,
    RegistryClient,
    digest_of,
    with_digest,
)

# -- Determining support, Pull ------------------------------------------------------------------


def test_end_1_says_that_this_is_a_registry(client: RegistryClient) -> None:
    answer = client.get("/v2/")
    assert (answer.status, answer.headers["docker-distribution-api-version"]) == (200, "registry/2.0")


@pytest.mark.parametrize(
    "path", [f"blobs/{MISSING}", f"manifests/{MISSING}", "manifests/none", "manifests/.INVALID_MANIFEST_NAME"]
)
def test_pulling_what_is_not_here_is_404(client: RegistryClient, repo: str, path: str) -> None:
    got, head = client.get(f"/v2/{repo}/{path}"), client.head(f"/v2/{repo}/{path}")
    assert (got.status, head.status, head.body) == (404, 404, b"")
    assert got.code in ("BLOB_UNKNOWN", "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("path", ["manifests/sha256:baddigeststring", "blobs/sha256:baddigeststring", "blobs/md5:00"])
def test_digests_are_parsed(client: RegistryClient, repo: str, path: str) -> None:
    answer = client.get(f"/v2/{repo}/{path}")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize("name", ["UPPER", "a//b", "-a", "a/", "a..b", "a" * 256, "%2e%2e/etc"])
def test_names_are_parsed(client: RegistryClient, name: str) -> None:
    assert client.get(f"/v2/{name}/manifests/t").status in (400, 404)
    assert client.begin(name).status in (400, 404)


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("500-1499", 500, 1500), ("500-", 500, 2048), ("-500", 1548, 2048), ("2000-5000", 2000, 2048), ("0-0", 0, 1)],
)
def test_pulling_blobs_a_range_is_206(client: RegistryClient, repo: str, asked: str, start: int, stop: int) -> None:
    data = blob(2048)
    digest = client.push_blob(repo, data)
    answer = client.get(f"/v2/{repo}/blobs/{digest}", Range=f"bytes={asked}")
    assert (answer.status, answer.body) == (206, data[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/2048"
    assert answer.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize("asked", ["500-0", "5000-10000", "2048-"])
def test_pulling_blobs_a_range_outside_is_416(client: RegistryClient, repo: str, asked: str) -> None:
    digest = client.push_blob(repo, blob(2048))
    answer = client.get(f"/v2/{repo}/blobs/{digest}", Range=f"bytes={asked}")
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */2048")


# -- Push: blobs --------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("data", [blob(), b"", b"{}"], ids=["random", "empty", "emptyJSON"])
def test_pushing_a_blob_monolithically_post_then_put(
    client: RegistryClient, repo: str, algorithm: str, data: bytes
) -> None:
    digest = digest_of(data, algorithm)
    begun = client.begin(repo)
    check_session(begun, 202, 0)
    answer = client.ask("PUT", with_digest(begun.location, digest), data, Content_Type="application/octet-stream")
    assert (answer.status, answer.headers["docker-content-digest"]) == (201, digest)
    assert client.get(answer.location).body == data
    check_pulled(client, repo, data, digest)
    assert client.get(begun.location).status == 404


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pushing_a_blob_with_a_single_post(client: RegistryClient, repo: str, algorithm: str) -> None:
    data = blob()
    digest = digest_of(data, algorithm)
    answer = client.ask("POST", f"/v2/{repo}/blobs/uploads/?digest={digest}", data)
    assert (answer.status, answer.headers["docker-content-digest"]) == (201, digest)
    assert client.get(answer.location).body == data
    check_pulled(client, repo, data, digest)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("put_last", [False, True], ids=["patched", "last-chunk-put"])
@pytest.mark.parametrize("disorder", [False, True], ids=["in-order", "out-of-order"])
def test_pushing_a_blob_in_chunks(
    client: RegistryClient, repo: str, algorithm: str, put_last: bool, disorder: bool
) -> None:
    data = blob(3 * 1024 - 5)
    digest, answer, received = digest_of(data, algorithm), client.begin(repo), 0
    location = answer.location

    def send(method: str, start: int, stop: int) -> Answer:
        place = with_digest(location, digest) if method == "PUT" else location
        return client.ask(method, place, data[start:stop], Content_Range=f"{start}-{stop - 1}")

    while received < len(data):
        stop = min(received + 1024, len(data))
        method = "PUT" if put_last and stop == len(data) else "PATCH"
        if disorder:
            wrong = 0 if stop == len(data) else stop
            check_session(send(method, wrong, min(wrong + 1024, len(data))), 416, received)
            check_session(client.get(location), 204, received)
        answer = send(method, received, stop)
        received = stop
        if method == "PATCH":
            check_session(answer, 202, received)
            check_session(client.get(answer.location), 204, received)
            location = answer.location
    if not put_last:
        answer = client.ask("PUT", with_digest(location, digest), Content_Length="0")
    assert (answer.status, answer.headers["docker-content-digest"]) == (201, digest)
    check_pulled(client, repo, data, digest)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pushing_a_blob_in_a_stream(client: RegistryClient, repo: str, algorithm: str) -> None:
    data = blob(300_000)
    digest = digest_of(data, algorithm)
    patched = client.ask("PATCH", client.begin(repo).location, iter([data[:7], data[7:200_000], data[200_000:]]))
    check_session(patched, 202, len(data))
    assert client.ask("PUT", with_digest(patched.location, digest), Content_Length="0").status == 201
    check_pulled(client, repo, data, digest)


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
    path = with_digest(f"/v2/{repo}/blobs/uploads/nobody-made-this", MISSING)
    answer = client.ask(method, path, b"x" if method in ("PATCH", "PUT") else None)
    assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_a_session_is_not_another_repositorys(client: RegistryClient, repo: str) -> None:
    location = client.begin(repo).location
    assert client.get(location.replace(repo, f"{repo}/other")).status == 404


def test_cancelling_a_blob_upload(client: RegistryClient, repo: str) -> None:
    location = client.begin(repo).location
    client.ask("PATCH", location, b"abc")
    assert client.delete(location).status == 204
    for method in ("GET", "DELETE", "PATCH"):
        assert client.ask(method, location, b"x" if method == "PATCH" else None).status == 404


# -- Push: mounting -----------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["&from={repo}/source", ""], ids=["from", "anonymous"])
def test_mounting_a_blob_from_another_repository(client: RegistryClient, repo: str, source: str) -> None:
    data = blob()
    digest = client.push_blob(f"{repo}/source", data)
    assert client.get(f"/v2/{repo}/blobs/{digest}").status == 404
    answer = client.begin(repo, f"?mount={digest}{source.format(repo=repo)}")
    assert (answer.status, answer.headers["docker-content-digest"]) == (201, digest)
    assert answer.location == f"/v2/{repo}/blobs/{digest}"
    check_pulled(client, repo, data, digest)
    assert client.delete(f"/v2/{repo}/blobs/{digest}").status == 202
    assert client.head(f"/v2/{repo}/blobs/{digest}").status == 404
    check_pulled(client, f"{repo}/source", data, digest)


def test_mounting_what_is_nowhere_begins_an_upload(client: RegistryClient, repo: str) -> None:
    data = blob()
    answer = client.begin(repo, f"?mount={digest_of(data)}&from={repo}/source")
    check_session(answer, 202, 0)
    assert client.ask("PUT", with_digest(answer.location, digest_of(data)), data).status == 201
