"""The resource tree, and the tables of handlers by route and method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import cast

from attrs import evolve
from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from k3dreg import __version__
from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.formats.trace_context import trace_id_of
from k3dreg.oci.errors import BrowserRefused, K3dregError, RouteUnknown
from k3dreg.oci.reference import Reference
from k3dreg.oci.routes import Base, BlobRoute, ManifestRoute, Route, parse_target
from k3dreg.oci.user_agent import is_on_our_behalf
from k3dreg.registry.use_cases import IRegistry
from k3dreg.reporting.activity import ContentRequest
from k3dreg.reporting.observer import NULL_OBSERVER, IObserver
from k3dreg.web.answers import Answer, Conditions, blob_answer, manifest_answer, text_answer
from k3dreg.web.auth import Access
from k3dreg.web.browsers import check_browser
from k3dreg.web.client_deadline import deadline_of
from k3dreg.web.error_answers import error_answer, method_not_allowed
from k3dreg.web.exchange import Exchange, Handler, Handlers, Methods, RequestContent
from k3dreg.web.http_channel import BodyRequest
from k3dreg.web.noted_manifest import noted
from k3dreg.web.pages import HEALTH, IPages
from k3dreg.web.purpose import may_decide_a_push
from k3dreg.web.request_log import Record, kind_of, name_of, quoted
from k3dreg.web.responder import client_of, render, when_admitted

_FRONT = f"""k3dreg {__version__}: an OCI registry whose content is the local Docker engine.

The registry API is at /v2/.
"""


class RegistryApi(Resource):
    """`/v2/` and everything below it (distribution-spec 1.1)."""

    isLeaf = True

    def __init__(
        self,
        registry: IRegistry,
        clock: IReactorTime,
        more: Sequence[Handlers],
        observer: IObserver,
        access: Access,
    ) -> None:
        """`more` are the handlers of pushing, discovery and management."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._access = access
        self._observer = observer
        self._registry = registry
        self._clock = clock
        self._more = more
        self._own: Mapping[type[Route], Methods] = {
            Base: _reading(self._base),
            ManifestRoute: _reading(self._manifest),
            BlobRoute: _reading(self._blob),
        }

    def _methods(self, route: Route) -> Methods:
        """Return the methods that `route` has now; a request with another one is answered by 405.

        The tables are read at each request, because a reload of the settings may change them.
        """
        found = dict(self._own.get(type(route), {}))
        for handlers in self._more:
            found.update(handlers.table.get(type(route), {}))
        return found

    def render(self, request: Request) -> int:
        """Answer any request, of any method."""
        record = _record(request, "", self._observer)
        method = record.method
        try:
            route, query = parse_target(request.uri, reading=method in _READS)
        except K3dregError as error:
            record.subject = quoted(request.uri)
            return render(request, self._clock, record, _at_once(error_answer(error)))
        record.subject, record.route = name_of(route), kind_of(route)
        record.quiet = isinstance(route, Base)
        user_agent = _joined(request, "User-Agent")
        record.trace.circular = is_on_our_behalf(user_agent)
        if isinstance(route, ManifestRoute):
            record.trace.client = record.client
            record.trace.may_decide_a_push = may_decide_a_push(method, _joined(request, "Accept"))
        methods = self._methods(route)
        handler = methods.get(method)
        if handler is None:
            return render(request, self._clock, record, _at_once(method_not_allowed(list(methods))))
        shown = authorization_of(request)
        exchange = Exchange(query, method != "HEAD", _conditions(request), shown, record.trace, _content(request))
        # By `/v2/` clients that push find out whether they have to log in, and `docker login` checks the password.
        is_base = isinstance(route, Base)
        reading = method in _READS and not is_base

        def answer() -> Awaitable[Answer]:
            return self._access.answer(
                shown,
                record.client,
                reading=reading,
                insist=is_base,
                handle=lambda rest: handler(route, evolve(exchange, authorization=rest)),
            )

        # A manifest or blob may take as long as Docker's pull of the image.
        seconds = deadline_of(user_agent)
        is_pull = False
        if reading and isinstance(route, ManifestRoute | BlobRoute):
            is_pull = True
            self._observer.asked(_content_request(record, route, self._clock.seconds()))
        if isinstance(route, ManifestRoute) and method == "GET":
            record.trace.node_waits_until = self._clock.seconds() + seconds
        return render(request, self._clock, record, answer, seconds if is_pull else None)

    async def _base(self, route: Base, exchange: Exchange) -> Answer:
        """end-1: clients check whether this is a registry, and whether they have to log in."""
        return text_answer(b"{}", "application/json")

    async def _manifest(self, route: ManifestRoute, exchange: Exchange) -> Answer:
        """end-3: answer with a manifest."""
        manifest = await self._registry.manifest(route.reference, exchange.authorization, exchange.trace)
        exchange.trace.manifest = manifest.descriptor
        return noted(await manifest_answer(manifest, exchange.with_body, exchange.conditions), exchange.trace)

    async def _blob(self, route: BlobRoute, exchange: Exchange) -> Answer:
        """end-2: answer with a blob."""
        blob = await self._registry.blob(route.repository, route.digest, exchange.trace)
        return blob_answer(blob, exchange.with_body, exchange.conditions)


class Root(Resource):
    """The root of the tree: `/` for users, `/v2/` for clients, and for other paths 404 in the form of OCI errors."""

    def __init__(
        self,
        registry: IRegistry,
        clock: IReactorTime,
        more: Sequence[Handlers] = (),
        observer: IObserver = NULL_OBSERVER,
        operations: IPages | None = None,
        access: Access | None = None,
        is_own_host: Callable[[str], bool] = lambda name: False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._access = Access() if access is None else access
        self._clock = clock
        self._observer = observer
        self._operations = operations
        self._is_own_host = is_own_host
        self.putChild(b"v2", RegistryApi(registry, clock, more, observer, self._access))

    def getChildWithDefault(self, path: bytes, request: Request) -> Resource:
        """Refuse invalid requests, and those of a browser on behalf of another site, before any other processing."""
        fault = cast(BodyRequest, request).fault
        if fault is not None:
            return _Refusal(fault, self._clock, self._observer)
        try:
            check_browser(request.requestHeaders, request.method, request.path, self._is_own_host)
        except BrowserRefused as error:
            return _Refusal(error, self._clock, self._observer)
        return super().getChildWithDefault(path, request)  # type: ignore[no-any-return, no-untyped-call]

    def getChild(self, path: bytes, request: Request) -> Resource:
        """Return this resource for any path but `/v2/`, which is the only child."""
        return self

    def render(self, request: Request) -> int:
        """Answer with the front page, a page about the daemon, or 404.

        All pages but those of `HEALTH` require the permission to read.
        """
        record = _record(request, quoted(request.uri), self._observer)
        if self._access.is_open or request.path in HEALTH:
            return self._render(request, record)
        admission = self._access.admit(authorization_of(request), record.client, reading=True)
        return when_admitted(request, self._clock, record, admission, lambda: self._render(request, record))

    def _render(self, request: Request, record: Record) -> int:
        method, operations = record.method, self._operations
        if operations is not None:
            if operations.takes_events(request, record):
                return NOT_DONE_YET
            page = operations.page(request.path)
            # At `/`, programs get `_FRONT` instead of the status page.
            if page is not None and (request.path != b"/" or "text/html" in (_joined(request, "Accept") or "")):
                record.route, record.quiet = page.route, True
                if method in _READS:
                    return render(request, self._clock, record, lambda: page.answer(request))
                return render(request, self._clock, record, _at_once(method_not_allowed(list(_READS))))
        if request.path != b"/":
            answer = error_answer(RouteUnknown("there is nothing at this path: the registry API is at /v2/"))
        elif method not in _READS:
            answer = method_not_allowed(list(_READS))
        else:
            answer = text_answer(_FRONT.encode("ascii"), "text/plain; charset=utf-8")
        return render(request, self._clock, record, _at_once(answer))


class _Refusal(Resource):
    """A resource that answers any request with the same error."""

    isLeaf = True

    def __init__(self, error: K3dregError, clock: IReactorTime, observer: IObserver) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._error = error
        self._clock = clock
        self._observer = observer

    def render(self, request: Request) -> int:
        record = _record(request, quoted(request.uri), self._observer)
        return render(request, self._clock, record, _at_once(error_answer(self._error)))


_READS = ("GET", "HEAD")


def _record(request: Request, subject: str, observer: IObserver) -> Record:
    method = request.method.decode("ascii", "backslashreplace")
    trace_id = trace_id_of(_joined(request, "traceparent"))
    return Record(client_of(request), method, subject, trace_id=trace_id, observer=observer)


def _content_request(record: Record, route: ManifestRoute | BlobRoute, now: float) -> ContentRequest:
    is_manifest = isinstance(route, ManifestRoute)
    reference = route.reference if isinstance(route, ManifestRoute) else Reference(route.repository, route.digest)
    may_pull = not (record.trace.circular or record.trace.may_decide_a_push)
    return ContentRequest(record.id, record.client, record.method, reference, is_manifest, now, may_pull)


def _reading(handler: Handler) -> Methods:
    """Return the methods of a route that can be read: one handler answers both GET and HEAD."""
    return dict.fromkeys(_READS, handler)


def _at_once(answer: Answer) -> Callable[[], Awaitable[Answer]]:
    async def ready() -> Answer:
        return answer

    return ready


def _conditions(request: Request) -> Conditions:
    return Conditions(_joined(request, "If-None-Match"), _joined(request, "Range"), _joined(request, "If-Range"))


def _content(request: Request) -> RequestContent:
    media_type = (_joined(request, "Content-Type") or "").partition(";")[0].strip()
    return RequestContent(cast(BodyRequest, request).body, media_type, _joined(request, "Content-Range"))


def authorization_of(request: Request) -> BasicAuth | None:
    """Return the user and password of a request; None if it has none."""
    return BasicAuth.from_header(_joined(request, "Authorization"))


def _joined(request: Request, name: str) -> str | None:
    """Return all values of a header as one, joined as in RFC 9110, 5.3; None if the header is missing.

    The values are read as bytes, because Twisted decodes text as UTF-8 and raises for any other bytes.
    """
    values = request.requestHeaders.getRawHeaders(name.encode("ascii"))
    return None if values is None else b", ".join(values).decode("latin-1")
