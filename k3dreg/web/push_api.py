"""Handlers for pushing (distribution-spec 1.1, "Push"): blobs by upload sessions, and manifests."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve

from k3dreg.formats.upload_session import parse_content_range, received_range
from k3dreg.oci.digest import ALGORITHMS, DEFAULT_ALGORITHM, Digest
from k3dreg.oci.errors import BadRequest, InvalidDigest, K3dregError, UploadOutOfOrder
from k3dreg.oci.manifest import LARGEST_MANIFEST
from k3dreg.oci.reference import Repository, Tag
from k3dreg.oci.routes import ManifestRoute, Route, UploadRoute, UploadsRoute
from k3dreg.registry.use_cases import IUploads, UploadStatus
from k3dreg.web.answers import Answer, Headers
from k3dreg.web.error_answers import error_answer
from k3dreg.web.exchange import Exchange, Methods, location
from k3dreg.web.request_body import BodyMemory

# Tags that one PUT may set.  All of them are in one header of the answer, and release scripts set fewer.
_MOST_TAGS = 20


class PushHandlers:
    """Handlers of the routes by which clients push blobs and manifests."""

    def __init__(self, uploads: IUploads) -> None:
        self._uploads = uploads
        self._memory = BodyMemory()

    @property
    def table(self) -> Mapping[type[Route], Methods]:
        """Return the handlers by route and method."""
        return {
            UploadsRoute: {"POST": self.begin},
            UploadRoute: {
                "GET": self.status,
                "HEAD": self.status,
                "PATCH": self.append,
                "PUT": self.commit,
                "DELETE": self.cancel,
            },
            ManifestRoute: {"PUT": self.put_manifest},
        }

    async def begin(self, route: UploadsRoute, exchange: Exchange) -> Answer:
        """end-4a, end-4c: open a session; end-4b: store a whole blob; end-11: mount a blob that is here already."""
        repository, query = route.repository, exchange.query
        digest, mount = query.one("digest"), query.one("mount")
        if digest is not None:
            return await self._whole(repository, Digest.parse(digest), exchange)
        if mount is not None:
            blob = Digest.parse(mount)
            # `from` is ignored: any repository's blob will do (distribution-spec 1.1, "automatic content discovery").
            if await self._uploads.mount(repository, blob, exchange.trace):
                exchange.trace.source = "mounted"
                return _created_blob(repository, blob)
        algorithm = query.one("digest-algorithm") or DEFAULT_ALGORITHM
        if algorithm not in ALGORITHMS:
            raise InvalidDigest(f"not a digest algorithm that k3dreg supports: {algorithm[:50]!r}")
        return _accepted(self._uploads.open(repository, algorithm), repository)

    async def _whole(self, repository: Repository, digest: Digest, exchange: Exchange) -> Answer:
        status = self._uploads.open(repository, digest.algorithm)
        content = exchange.content
        try:
            await self._uploads.commit(repository, status.session, digest, content.body, None, content.body.length)
        except BaseException:
            self._give_up(repository, status.session)
            raise
        return _created_blob(repository, digest)

    async def status(self, route: UploadRoute, exchange: Exchange) -> Answer:
        """end-13: tell how many bytes a session has received."""
        status = self._uploads.status(route.repository, route.session)
        return Answer(204, _session_headers(status, route.repository), None)

    async def append(self, route: UploadRoute, exchange: Exchange) -> Answer:
        """end-5: append a chunk, or the whole blob as a stream."""
        content = exchange.content
        try:
            status = await self._uploads.append(
                route.repository,
                route.session,
                content.body,
                parse_content_range(content.content_range),
                content.body.length,
            )
        except UploadOutOfOrder as error:
            return _out_of_order(error, route)
        return _accepted(status, route.repository)

    async def commit(self, route: UploadRoute, exchange: Exchange) -> Answer:
        """end-6: append the last chunk, the whole blob or nothing, and store the blob under its digest."""
        digest = exchange.query.one("digest")
        if digest is None:
            raise BadRequest("?digest= is missing: the request that ends an upload names the blob's digest")
        parsed, content = Digest.parse(digest), exchange.content
        try:
            await self._uploads.commit(
                route.repository,
                route.session,
                parsed,
                content.body,
                parse_content_range(content.content_range),
                content.body.length,
            )
        except UploadOutOfOrder as error:
            return _out_of_order(error, route)
        return _created_blob(route.repository, parsed)

    async def cancel(self, route: UploadRoute, exchange: Exchange) -> Answer:
        """end-14: end a session and delete its bytes."""
        self._uploads.cancel(route.repository, route.session)
        return Answer(204, (), None)

    async def put_manifest(self, route: ManifestRoute, exchange: Exchange) -> Answer:
        """end-7, end-7b: store a manifest, and let tags name it."""
        digest = route.reference.digest
        names = exchange.query.parameters.get("tag", ())
        if len(names) > _MOST_TAGS:
            raise BadRequest(f"{len(names)} tags at once; at most {_MOST_TAGS} are accepted")
        tags = [Tag.parse(name) for name in names]
        if isinstance(route.reference.target, Tag):
            tags.insert(0, route.reference.target)
        with self._memory.holding() as grow:
            data = await exchange.content.body.read_whole(LARGEST_MANIFEST, grow)
            pushed = await self._uploads.push_manifest(
                route.repository, data, exchange.content.media_type, digest, tags, exchange.trace
            )
        headers = [
            ("Location", location(route.repository, f"manifests/{pushed.digest}")),
            ("Docker-Content-Digest", str(pushed.digest)),
        ]
        if pushed.subject is not None:
            # Tells the client that this registry lists referrers ("Pushing Manifests with Subject").
            headers.append(("OCI-Subject", str(pushed.subject)))
        if names:
            headers.append(("OCI-Tag", ", ".join(map(str, tags))))
        return Answer(201, tuple(headers), 0)

    def _give_up(self, repository: Repository, session: str) -> None:
        try:
            self._uploads.cancel(repository, session)
        except K3dregError:
            return  # it has ended already


def _session_headers(status: UploadStatus, repository: Repository) -> Headers:
    return (
        ("Location", location(repository, f"blobs/uploads/{status.session}")),
        ("Range", received_range(status.received)),
        ("Docker-Upload-UUID", status.session),
    )


def _accepted(status: UploadStatus, repository: Repository) -> Answer:
    return Answer(202, _session_headers(status, repository), 0)


def _created_blob(repository: Repository, digest: Digest) -> Answer:
    headers = (("Location", location(repository, f"blobs/{digest}")), ("Docker-Content-Digest", str(digest)))
    return Answer(201, headers, 0)


def _out_of_order(error: UploadOutOfOrder, route: UploadRoute) -> Answer:
    """Return a 416 with the session's location and the bytes received, by which the client can resume."""
    answer = error_answer(error)
    status = UploadStatus(route.repository, route.session, error.received)
    return evolve(answer, headers=(*answer.headers, *_session_headers(status, route.repository)))
