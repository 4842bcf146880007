"""Paths of the registry API."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import (
    BadRequest,
    InvalidDigest,
    InvalidName,
    InvalidReference,
    K3dregError,
    RouteUnknown,
    UploadUnknown,
)
from k3dreg.oci.reference import Reference, Repository
from k3dreg.oci.routes import (
    Base,
    BlobRoute,
    CatalogRoute,
    ManifestRoute,
    Query,
    ReferrersRoute,
    Route,
    TagsRoute,
    UploadRoute,
    UploadsRoute,
    parse_route,
    parse_target,
)

HEX = "0123456789abcdef" * 4
DIGEST = Digest.parse(f"sha256:{HEX}")
NAMES = ["a", "library/nginx", "a/b/c", "manifests", "x/blobs/uploads", "tags/list", "a/manifests/b", "blobs/referrers"]

NOT_PATHS = """
    / /v1/ /v2x /v v2/ //v2/ /V2/ /v2/a /v2/a/b /v2/manifests/a /v2/blobs/uploads/x/y /v2/tags/list
    /v2/a/tags/list/ /v2/a/tags /v2/_catalog/ /v2/a/manifests/b/c /v2//manifests
"""
NOT_NAMES = """
    .. ../etc a/../b . a/./b a//b /a a/ A a%00 a%0a a%250a %2e%2e a%2f%2fb a%5cb %c3%a4 %ff %2561 a%zz a:5000/b -a
"""


def routes(name: str) -> list[tuple[str, Route]]:
    repository = Repository.parse(name)
    return [
        (f"/v2/{name}/manifests/1.27", ManifestRoute(Reference.parse(repository, "1.27"))),
        (f"/v2/{name}/manifests/list", ManifestRoute(Reference.parse(repository, "list"))),
        (f"/v2/{name}/manifests/sha256:{HEX}", ManifestRoute(Reference.parse(repository, f"sha256:{HEX}"))),
        (f"/v2/{name}/manifests/sha256%3A{HEX}", ManifestRoute(Reference.parse(repository, f"sha256:{HEX}"))),
        (f"/v2/{name}/blobs/sha256:{HEX}", BlobRoute(repository, DIGEST)),
        (f"/v2/{name}/blobs/uploads/", UploadsRoute(repository)),
        (f"/v2/{name}/blobs/uploads", UploadsRoute(repository)),
        (f"/v2/{name}/blobs/uploads/1-a_B", UploadRoute(repository, "1-a_B")),
        (f"/v2/{name}/tags/list", TagsRoute(repository)),
        (f"/v2/{name}/referrers/sha256:{HEX}", ReferrersRoute(repository, DIGEST)),
    ]


@pytest.mark.parametrize(("path", "route"), [pair for name in NAMES for pair in routes(name)])
def test_each_route_is_told_from_the_right_whatever_the_name_looks_like(path: str, route: Route) -> None:
    assert parse_route(path.encode()) == route


def test_the_routes_without_a_name() -> None:
    assert parse_route(b"/v2/") == Base()
    assert parse_route(b"/v2") == Base()
    assert parse_route(b"/v2/_catalog") == CatalogRoute()


def test_an_encoded_slash_is_a_slash() -> None:
    assert parse_route(b"/v2/library%2Fnginx/manifests/1") == parse_route(b"/v2/library/nginx/manifests/1")


@pytest.mark.parametrize("path", ["", *NOT_PATHS.split()])
def test_other_paths_are_unknown(path: str) -> None:
    with pytest.raises(RouteUnknown):
        parse_route(path.encode())


@pytest.mark.parametrize("name", ["", "a b", "a" * 256, *NOT_NAMES.split()])
def test_a_name_outside_the_grammar_is_refused(name: str) -> None:
    for rest in ("manifests/latest", f"blobs/sha256:{HEX}", "blobs/uploads/", "tags/list", f"referrers/sha256:{HEX}"):
        with pytest.raises(InvalidName):
            parse_route(f"/v2/{name}/{rest}".encode())


@pytest.mark.parametrize("tag", ["", ".x", "-x", "a%00", "..", "%2e%2e", "a%20b", "x" * 129])
def test_a_tag_outside_the_grammar_is_refused(tag: str) -> None:
    with pytest.raises(InvalidReference):
        parse_route(f"/v2/a/manifests/{tag}".encode())


@pytest.mark.parametrize(
    "digest", ["sha256:", "sha256:xyz", f"sha256:{HEX[1:]}", f"sha256:{HEX.upper()}", f"md5:{HEX}"]
)
def test_a_digest_outside_the_grammar_is_refused(digest: str) -> None:
    for kind in ("manifests", "blobs", "referrers"):
        with pytest.raises(InvalidDigest):
            parse_route(f"/v2/a/{kind}/{digest}".encode())


@pytest.mark.parametrize("session", ["..", "a%00", "%2e%2e", "a.b", "x" * 129])
def test_what_cannot_be_an_upload_session_is_unknown(session: str) -> None:
    with pytest.raises(UploadUnknown):
        parse_route(f"/v2/a/blobs/uploads/{session}".encode())


def test_ns_names_the_registry() -> None:
    route, _ = parse_target(b"/v2/nginx/manifests/1?ns=docker.io")
    assert isinstance(route, ManifestRoute)
    assert str(route.reference) == "docker.io/library/nginx:1"
    route, _ = parse_target(b"/v2/x/manifests/1?ns=k3d-reg%3A5000")
    assert isinstance(route, ManifestRoute)
    assert route.repository.registry == "k3d-reg:5000"


@pytest.mark.parametrize("query", [b"", b"?", b"?ns=", b"?other=1"])
def test_an_absent_or_empty_ns_is_no_registry(query: bytes) -> None:
    route, _ = parse_target(b"/v2/x/tags/list" + query)
    assert route == TagsRoute(Repository.parse("x"))


@pytest.mark.parametrize("ns", [b"a%2Fb", b"a%00", b"a%0Ab", b"..", b"http://a", b"a:b:c"])
def test_an_ns_that_is_no_host_is_refused(ns: bytes) -> None:
    with pytest.raises(InvalidName):
        parse_target(b"/v2/x/tags/list?ns=" + ns)


@pytest.mark.parametrize("query", [b"ns=a&ns=a", b"ns=&ns=a", b"&".join([b"a=1"] * 100)])
def test_a_repeated_ns_and_an_absurd_query_are_refused(query: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_target(b"/v2/x/tags/list?" + query)


def test_the_other_parameters_are_for_the_handlers() -> None:
    _, query = parse_target(f"/v2/x/blobs/uploads/?mount=sha256%3A{HEX}&from=a%2Fb&ns=c".encode())
    assert query.one("mount") == f"sha256:{HEX}"
    assert query.one("from") == "a/b"
    assert query.one("digest") is None
    assert Query.parse("n=1").parameters == {"n": ("1",)}


@given(st.binary(max_size=60) | st.text("/v2abt%._:-2efmnis?=&", max_size=60).map(lambda text: b"/v2/" + text.encode()))
def test_any_target_gives_a_route_or_one_of_our_errors(target: bytes) -> None:
    try:
        route, _ = parse_target(target)
    except K3dregError:
        return
    repository = getattr(route, "repository", None)
    assert repository is None or ".." not in repository.path.split("/")


def meant(target: str, *, reading: bool = True) -> str:
    route, _ = parse_target(target.encode(), reading=reading)
    assert isinstance(route, ManifestRoute)
    return f"{route.repository.registry or '-'} {route.repository.path}"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        # hosts.toml with `override_path`, a k3s `rewrite`: the registry twice.
        ("/v2/ghcr.io/team/app/manifests/1?ns=ghcr.io", "ghcr.io team/app"),
        ("/v2/docker.io/library/nginx/manifests/1?ns=docker.io", "docker.io library/nginx"),
        ("/v2/registry-1.docker.io/nginx/manifests/1?ns=docker.io", "docker.io library/nginx"),
        ("/v2/localhost:5005/app/manifests/1?ns=LOCALHOST%3A5005", "LOCALHOST:5005 app"),
        # Another host in the path is a part of that registry's path.
        ("/v2/docker.io/library/nginx/manifests/1?ns=harbor.example", "harbor.example docker.io/library/nginx"),
        ("/v2/ghcr.io/manifests/1?ns=ghcr.io", "ghcr.io ghcr.io"),
        # Without `ns`: a port is in no path, and a host may be in one of this registry's own.
        ("/v2/localhost:5005/team/app/manifests/1", "localhost:5005 team/app"),
        ("/v2/10.0.0.1%3A5000/app/manifests/1", "10.0.0.1:5000 app"),
        ("/v2/ghcr.io/team/app/manifests/1", "- ghcr.io/team/app"),
    ],
)
def test_a_registry_in_the_path(target: str, expected: str) -> None:
    assert meant(target) == expected


@pytest.mark.parametrize(
    "target",
    [
        "/v2/a/localhost:5005/app/manifests/1",
        "/v2/localhost:5005/manifests/1",
        "/v2/:5005/app/manifests/1",
        "/v2/local_host:5005/app/manifests/1",
        "/v2/h:123456/app/manifests/1",
        "/v2/localhost:5005/app/manifests/1?ns=ghcr.io",
    ],
)
def test_a_port_elsewhere_is_outside_the_grammar(target: str) -> None:
    with pytest.raises(InvalidName):
        meant(target)


def test_a_port_in_the_path_is_for_reading_only() -> None:
    for path in ("manifests/1", "blobs/uploads/"):
        with pytest.raises(InvalidName):
            parse_target(f"/v2/localhost:5005/app/{path}".encode(), reading=False)


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        (Repository(None, "ghcr.io/team/app"), Repository("ghcr.io", "team/app")),
        (Repository(None, "localhost/app"), Repository("localhost", "app")),
        (Repository(None, "docker.io/nginx"), Repository("docker.io", "library/nginx")),
        (Repository(None, "team/app"), None),
        (Repository(None, "ghcr.io"), None),
        (Repository(None, "my_team.x/app"), None),
        (Repository("ghcr.io", "quay.io/app"), None),
    ],
)
def test_the_registry_that_a_path_names_by_itself(repository: Repository, expected: Repository | None) -> None:
    assert repository.in_path == expected
    assert repository.upstream.registry is not None
