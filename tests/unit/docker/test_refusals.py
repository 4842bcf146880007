"""Tests of k3dreg.docker.refusals: what engines said to a scripted registry, in both image stores."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k3dreg.docker.refusals import refusal
from k3dreg.oci.errors import (
    AuthenticationRequired,
    Denied,
    EngineError,
    K3dregError,
    ManifestUnknown,
    NotAnImage,
    RateLimited,
    UpstreamFailed,
)

_RESOLVE = 'failed to resolve reference "h.io/n/a:1": '
_HEAD = f"unknown: {_RESOLVE}unexpected status from HEAD request to https://h.io/v2/n/a/manifests/1: "
_PAGE = "<html>\r\n<head><title>404 Not Found</title></head><body>unauthorized denied</body></html>"

_SAID: list[tuple[str, int, str, type[K3dregError]]] = [
    ("name unknown, containerd", 404, f"{_RESOLVE}h.io/n/a:1: not found", ManifestUnknown),
    ("name unknown, classic", 404, "name unknown", ManifestUnknown),
    ("manifest, classic", 404, "manifest for h/n:t not found: manifest unknown: manifest unknown", ManifestUnknown),
    ("404 page, classic", 500, f"unknown: {_PAGE}", ManifestUnknown),
    (
        "no credentials, containerd",
        500,
        f"{_RESOLVE}pull access denied, repository does not exist or may require authorization: "
        "authorization failed: no basic auth credentials",
        AuthenticationRequired,
    ),
    (
        "no credentials, classic",
        500,
        'Head "http://h.io/v2/n/a/manifests/1": no basic auth credentials',
        AuthenticationRequired,
    ),
    ("wrong credentials, containerd", 500, f"{_HEAD}401 Unauthorized", AuthenticationRequired),
    ("wrong credentials, classic", 401, "unauthorized", AuthenticationRequired),
    (
        "insufficient scope, containerd",
        404,
        "pull access denied for h.io/n/a, repository does not exist or may require 'docker login'",
        AuthenticationRequired,
    ),
    (
        "insufficient scope, classic",
        404,
        "pull access denied for h.io/n/a, repository does not exist or may require 'docker login': "
        "denied: requested access to the resource is denied",
        AuthenticationRequired,
    ),
    (
        "token server, containerd",
        401,
        "authentication required - incorrect username or password",
        AuthenticationRequired,
    ),
    (
        "token server, classic",
        401,
        'Head "https://h.io/v2/n/a/manifests/1": unauthorized: incorrect username or password',
        AuthenticationRequired,
    ),
    ("manifest, Podman", 404, "manifest unknown: manifest unknown", ManifestUnknown),
    ("name unknown, Podman", 404, "name unknown: name unknown", ManifestUnknown),
    (
        "404 page, Podman",
        500,
        "error parsing HTTP 404 response body: invalid character '<' looking for beginning of value: "
        '"<html>\\r\\n<head><title>404 Not Found</title></head><body>nginx</body></html>"',
        ManifestUnknown,
    ),
    ("no credentials, Podman", 401, "unauthorized: authentication required", AuthenticationRequired),
    ("403, Podman", 403, "denied: denied", Denied),
    ("429, Podman", 429, "toomanyrequests: toomanyrequests", RateLimited),
    ("closed port, Podman", 500, "connection refused", UpstreamFailed),
    ("unknown host, Podman", 500, "lookup h.io on 10.0.0.1:53: no such host", UpstreamFailed),
    (
        "token server in the registry's usual words, containerd 28",
        500,
        "error from registry: unauthorized\nunauthorized",
        AuthenticationRequired,
    ),
    ("token server in its own words, containerd 28", 401, "error from registry: Access denied", AuthenticationRequired),
    (
        "token server, containerd 26",
        500,
        f"{_RESOLVE}failed to authorize: failed to fetch anonymous token: unexpected status from GET request to "
        "http://h.io/token?scope=repository%3Aa%3Apull&service=h: 401 Unauthorized",
        AuthenticationRequired,
    ),
    (
        "token server, classic 20",
        500,
        'Head "http://h.io/v2/a/manifests/1": unauthorized: HTTP Basic: Access denied',
        AuthenticationRequired,
    ),
    (
        "token server without words, classic",
        401,
        'Head "http://h.io/v2/a/manifests/1": unauthorized: ',
        AuthenticationRequired,
    ),
    (
        "token server that is down, containerd 26",
        500,
        f"{_RESOLVE}failed to authorize: failed to fetch oauth token: unexpected status from POST request to "
        "http://h.io/token: 503 Service Unavailable",
        UpstreamFailed,
    ),
    (
        "token server that is not found, containerd",
        500,
        f'{_RESOLVE}failed to authorize: failed to fetch anonymous token: Get "https://auth.h.io/token?service=h": '
        "dial tcp: lookup auth.h.io on 10.0.0.1:53: no such host",
        UpstreamFailed,
    ),
    (
        "Google to the anonymous, containerd 28",
        403,
        'error from registry: Unauthenticated request. Unauthenticated requests do not have permission "x" on "y"',
        Denied,
    ),
    (
        "Google to the anonymous, classic",
        403,
        'Head "https://h.io/v2/a/manifests/1": denied: Unauthenticated request. Unauthenticated requests do not '
        'have permission "x" on resource "y" (or it may not exist)',
        Denied,
    ),
    ("denied twice, containerd 28", 500, "error from registry: denied\ndenied", Denied),
    ("403 on a layer, containerd 28", 0, "error from registry: requested access to the resource is denied", Denied),
    (
        "403 on a layer, containerd 26",
        0,
        "failed to copy: httpReadSeeker: failed open: unexpected status code https://h.io/v2/a/blobs/sha256:00: "
        "403 Forbidden - Server message: denied: no",
        Denied,
    ),
    (
        "403 page, classic 20",
        500,
        "error parsing HTTP 403 response body: invalid character '<' looking for beginning of value: "
        '"<html>\\r\\n<head><title>403 Forbidden</title></head><body>nginx</body></html>"',
        Denied,
    ),
    (
        "404 page, classic 20",
        500,
        "error parsing HTTP 404 response body: invalid character '<' looking for beginning of value: "
        '"<html>\\r\\n<head><title>404 Not Found</title></head><body>nginx</body></html>"',
        ManifestUnknown,
    ),
    (
        "403 without words, classic 20",
        500,
        'error parsing HTTP 403 response body: unexpected end of JSON input: ""',
        Denied,
    ),
    ("429 on a layer, containerd 28", 0, "error from registry: You have reached your pull rate limit.", RateLimited),
    ("429 of a token server, containerd 28", 500, "error from registry: toomanyrequests\ntoomanyrequests", RateLimited),
    ("500 on a layer, containerd 28", 0, "error from registry: the words of a registry", UpstreamFailed),
    ("hung up, containerd", 500, f'{_RESOLVE}failed to do request: Head "https://h.io/v2/a": EOF', UpstreamFailed),
    ("hung up, classic", 500, 'Head "http://h.io/v2/a/manifests/1": EOF', UpstreamFailed),
    (
        "wrong bytes, containerd",
        0,
        'failed commit on ref "layer-sha256:4c": commit failed: unexpected commit digest sha256:87, expected '
        "sha256:4c: failed precondition",
        UpstreamFailed,
    ),
    ("wrong bytes, classic", 0, "filesystem layer verification failed for digest sha256:40", UpstreamFailed),
    ("platform, containerd 26", 404, "no match for platform in manifest: not found", ManifestUnknown),
    (
        "disk full, classic",
        0,
        "write /var/lib/docker/tmp/GetImageBlob2378274454: no space left on device",
        EngineError,
    ),
    (
        "disk full while unpacking, classic 20",
        0,
        "failed to register layer: Error processing tar file(exit status 1): write /x: no space left on device",
        EngineError,
    ),
    ("failed to authorize", 500, f"{_RESOLVE}failed to authorize: failed to fetch", AuthenticationRequired),
    ("403, containerd", 500, f"{_HEAD}403 Forbidden", Denied),
    ("403, classic", 403, "denied", Denied),
    ("403 with words, classic", 500, "error pulling image configuration: denied: no", Denied),
    (
        "403 page, classic",
        404,
        f"pull access denied for h.io/n/a, repository does not exist or may require 'docker login': denied: {_PAGE}",
        AuthenticationRequired,
    ),
    ("429, containerd", 500, f"{_HEAD}429 Too Many Requests", RateLimited),
    ("429, classic", 429, "toomanyrequests: You have reached your pull rate limit.", RateLimited),
    ("429 in the stream", 0, "toomanyrequests: You have reached your pull rate limit.", RateLimited),
    ("500, containerd", 500, f"{_HEAD}500 Internal Server Error", UpstreamFailed),
    ("500, classic", 500, "received unexpected HTTP status: 500 Internal Server Error", UpstreamFailed),
    (
        "closed port, containerd",
        500,
        f'{_RESOLVE}failed to do request: Head "https://h.io/v2/": dial tcp 127.0.0.1:1: connect: connection refused',
        UpstreamFailed,
    ),
    (
        "unknown host, classic",
        500,
        'Get "https://h.io/v2/": dial tcp: lookup h.io on 10.0.0.1:53: no such host',
        UpstreamFailed,
    ),
    ("plain HTTP", 500, "http: server gave HTTP response to HTTPS client", UpstreamFailed),
    ("bad certificate", 500, "tls: failed to verify certificate: x509: certificate has expired", UpstreamFailed),
    ("not TLS", 500, "tls: first record does not look like a TLS handshake", UpstreamFailed),
    (
        "platform, containerd",
        404,
        "no matching manifest for linux/s390x in the manifest list entries: no match for platform in manifest: "
        "not found",
        ManifestUnknown,
    ),
    ("platform, classic", 0, "no matching manifest for linux/s390x in the manifest list entries", ManifestUnknown),
    (
        "malformed, containerd",
        0,
        "unable to fetch descriptor () which reports content size of zero: invalid argument",
        UpstreamFailed,
    ),
    (
        "blob, classic",
        0,
        "error pulling image configuration: download failed after attempts=1: unknown blob",
        UpstreamFailed,
    ),
    (
        "blob, containerd",
        0,
        "failed to copy: httpReadSeeker: failed open: content at https://h.io/v2/n/a/blobs/sha256:00 not found: "
        "not found",
        UpstreamFailed,
    ),
    ("bad name", 400, "invalid reference format: repository name (h.io/N) must be lowercase", ManifestUnknown),
    ("long name", 400, "repository name must not be more than 255 characters", ManifestUnknown),
    (
        "long name, Podman",
        500,
        'normalizing image: normalizing name for compat API: parsing reference "h.io/N:1": '
        "repository name must not be more than 255 characters",
        ManifestUnknown,
    ),
    ("reserved name", 403, "'scratch' is a reserved name", ManifestUnknown),
    ("disk full", 0, "failed to register layer: write /usr/lib/x: no space left on device", EngineError),
    ("the engine's own files", 500, "open /var/lib/docker/tmp/x: permission denied", EngineError),
    ("artifact, classic", 0, "unsupported media type application/vnd.cncf.helm.config.v1+json", NotAnImage),
    ("signature, classic", 0, "unsupported media type application/vnd.dev.cosign.simplesigning.v1+json", NotAnImage),
    (
        "artifact, Podman",
        500,
        'unsupported image-specific operation on artifact with type "application/vnd.wasm.config.v1+json"',
        NotAnImage,
    ),
    (
        "model, Docker 28",
        0,
        'AI models are not yet supported by the Engine, please use "docker model pull/run" instead',
        NotAnImage,
    ),
    ("model, Docker 26", 0, "failed to register layer: unexpected EOF", NotAnImage),
    (
        "model, Docker 20.10",
        0,
        "failed to register layer: Error processing tar file(exit status 1): unexpected EOF",
        NotAnImage,
    ),
    (
        "signature, Podman",
        0,
        'unable to copy from source docker://h.io/n/a:1: writing blob: adding layer with blob "sha256:00"/""/"": '
        "unpacking failed (error: exit status 1; output: unexpected EOF)",
        NotAnImage,
    ),
    (
        "connection cut, Podman",
        0,
        "unable to copy from source docker://h.io/n/a:1: writing blob: happened during read: unexpected EOF",
        UpstreamFailed,
    ),
    ("not a config", 0, "invalid rootfs in image configuration", NotAnImage),
    ("no words", 500, "", UpstreamFailed),
    ("no words, not found", 404, "", ManifestUnknown),
]


@pytest.mark.parametrize(("case", "status", "message", "kind"), _SAID, ids=[case for case, *_ in _SAID])
def test_what_docker_says_becomes_the_right_kind_of_error(
    case: str, status: int, message: str, kind: type[K3dregError]
) -> None:
    error = refusal(status, message)
    assert type(error) is kind, error


@pytest.mark.parametrize(("case", "status", "message", "kind"), _SAID, ids=[case for case, *_ in _SAID])
def test_the_text_is_one_line_for_a_person(case: str, status: int, message: str, kind: type[K3dregError]) -> None:
    text = str(refusal(status, message))
    assert text
    assert text.isprintable()
    assert not re.search(r"<[/!a-z]", text, re.IGNORECASE)  # no HTML; Podman quotes a bare "<"
    assert "/var/lib" not in text


def test_docker_s_own_words_are_kept() -> None:
    said = 'manifest for h.io:5000/n/a:1 not found: Get "https://h.io/v2/n/a": manifest unknown'
    assert str(refusal(404, said)) == said


def test_a_page_is_named_by_its_title() -> None:
    assert str(refusal(500, f"unknown: {_PAGE}")) == "unknown: (an HTML page: 404 Not Found)"


_WORD = st.sampled_from(["denied", "unauthorized", "toomanyrequests", "not-found", "manifest", "unknown", "a"])
_NAME = st.lists(_WORD, min_size=1, max_size=4).map("/".join)


@given(_NAME, _WORD)
def test_the_name_of_an_image_does_not_mislead(name: str, tag: str) -> None:
    reference = f"h.io/{name}:{tag}"
    head = f'failed to resolve reference "{reference}": '
    refused = f'failed to do request: Head "https://h.io/v2/{name}/manifests/{tag}": dial tcp: connection refused'
    assert type(refusal(500, head + refused)) is UpstreamFailed
    assert type(refusal(404, f"{head}{reference}: not found")) is ManifestUnknown
    assert type(refusal(404, f"manifest for {reference} not found: manifest unknown")) is ManifestUnknown
