"""The paths of a registry (distribution-spec 1.1, "Endpoints", end-1 to end-13), as values.

Repository names contain slashes, so a path is matched from the right: the name is everything before
`/manifests/<reference>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, unquote_to_bytes

from attrs import field, frozen

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BadRequest, RouteUnknown, UploadUnknown
from k3dreg.oci.reference import Reference, Repository

# The IDs of k3dreg's upload sessions match this.
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,128}")
# Clients send at most four parameters, besides up to 20 tags (see `push_api`).
_MOST_PARAMETERS = 32


@frozen
class Base:
    """`/v2/` (end-1)."""


@frozen
class ManifestRoute:
    """`/v2/<name>/manifests/<reference>` (end-3, end-7, end-9)."""

    reference: Reference

    @property
    def repository(self) -> Repository:
        return self.reference.repository


@frozen
class BlobRoute:
    """`/v2/<name>/blobs/<digest>` (end-2, end-10)."""

    repository: Repository
    digest: Digest


@frozen
class UploadsRoute:
    """`/v2/<name>/blobs/uploads/` (end-4a, end-4b, end-11)."""

    repository: Repository


@frozen
class UploadRoute:
    """`/v2/<name>/blobs/uploads/<session>` (end-5, end-6, end-13)."""

    repository: Repository
    session: str


@frozen
class TagsRoute:
    """`/v2/<name>/tags/list` (end-8a, end-8b)."""

    repository: Repository


@frozen
class ReferrersRoute:
    """`/v2/<name>/referrers/<digest>` (end-12a, end-12b)."""

    repository: Repository
    digest: Digest


@frozen
class CatalogRoute:
    """`/v2/_catalog`: not in the distribution-spec, but in Docker's registry API, from which that was made."""


Route = Base | ManifestRoute | BlobRoute | UploadsRoute | UploadRoute | TagsRoute | ReferrersRoute | CatalogRoute


@frozen
class Query:
    """The parameters of a request, percent-decoded."""

    parameters: Mapping[str, tuple[str, ...]] = field(factory=dict)

    @classmethod
    def parse(cls, text: str) -> Query:
        """Return the parameters in `text`, which follows the `?`.  Raises `BadRequest` for too many parameters."""
        if not text:
            return cls()
        try:
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
        except ValueError as error:
            raise BadRequest("too many parameters in the query") from error
        found: dict[str, tuple[str, ...]] = {}
        for name, value in pairs:
            found[name] = (*found.get(name, ()), value)
        return cls(found)

    def one(self, name: str) -> str | None:
        """Return the value of a parameter, None if it is absent or empty.  Raises `BadRequest` if it is repeated."""
        values = self.parameters.get(name, ())
        if len(values) > 1:
            raise BadRequest(f"{name}= is given {len(values)} times")
        return values[0] or None if values else None


def parse_target(target: bytes, *, reading: bool = False) -> tuple[Route, Query]:
    """Return the route and query of a target, such as `/v2/library/nginx/manifests/1.27?ns=docker.io`.

    `ns` is the registry for which the client uses this one as a mirror, and becomes part of the repository.  `reading`
    is whether the request only reads.  Raises as `parse_route` does, and `BadRequest`.
    """
    path, _, query_text = target.partition(b"?")
    query = Query.parse(query_text.decode("ascii", "backslashreplace"))
    return parse_route(path, query.one("ns"), reading=reading), query


def parse_route(path: bytes, registry: str | None = None, *, reading: bool = False) -> Route:
    """Return the route of a path, with every part of it parsed.

    The path is percent-decoded once, before it is split.

    `registry` is the value of `ns=`; for it and `reading` see `Repository.of_request`.
    Raises `InvalidName`, `InvalidReference`, `InvalidDigest`, `UploadUnknown` or `RouteUnknown`.
    """
    text = unquote_to_bytes(path).decode("utf-8", "backslashreplace")
    if text != "/v2" and not text.startswith("/v2/"):
        raise RouteUnknown(f"not a path of the registry API: {text[:150]!r}")
    match text.split("/")[2:]:
        case [] | [""]:
            return Base()
        case ["_catalog"]:
            return CatalogRoute()
        case [*name, "tags", "list"] if name:
            return TagsRoute(_repository(name, registry, reading))
        case [*name, "blobs", "uploads"] | [*name, "blobs", "uploads", ""] if name:
            return UploadsRoute(_repository(name, registry))
        case [*name, "blobs", "uploads", session] if name:
            return _upload(_repository(name, registry), session)
        case [*name, ("manifests" | "blobs" | "referrers") as kind, last] if name:
            return _LAST[kind](_repository(name, registry, reading), last)
    raise RouteUnknown(f"not a path of the registry API: {text[:150]!r}")


def _repository(name: list[str], registry: str | None, reading: bool = False) -> Repository:
    return Repository.of_request("/".join(name), registry, reading=reading)


def _upload(repository: Repository, session: str) -> UploadRoute:
    if not _SESSION.fullmatch(session):
        raise UploadUnknown(f"no upload session is called {session[:150]!r}")
    return UploadRoute(repository, session)


_LAST: Mapping[str, Callable[[Repository, str], Route]] = {
    "manifests": lambda repository, last: ManifestRoute(Reference.parse(repository, last)),
    "blobs": lambda repository, last: BlobRoute(repository, Digest.parse(last)),
    "referrers": lambda repository, last: ReferrersRoute(repository, Digest.parse(last)),
}
