"""Pages about the daemon itself: health, metrics, and the status page."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.resources import files

from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from k3dreg.status.cluster_snippets import Address
from k3dreg.status.event_stream import Events
from k3dreg.status.monitoring import IMonitoring
from k3dreg.status.overview import SeenPull
from k3dreg.status.status_page import document, flatten, nodes, others, pulls, saved, under_way
from k3dreg.web.answers import Answer, Headers
from k3dreg.web.error_answers import error_answer
from k3dreg.web.pages import Page
from k3dreg.web.request_log import Record

_FRESH = ("Cache-Control", "no-store")
# The page may load from this server only, and no page may frame it (CSP level 3).
_SAFE: Headers = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)
_ASSETS = {
    "status.css": "text/css; charset=utf-8",
    "status.js": "text/javascript; charset=utf-8",
    "status.svg": "image/svg+xml",
}
# Seconds for which the changing parts, once made, are sent to every open page.
_PARTS_ARE_GOOD_FOR = 0.25


class Operations:
    """`/healthz`, `/readyz`, `/metrics`, and the status page at `/` with its assets and events.  Implements `IPages`.

    Call `events.shutdown` at the end.
    """

    def __init__(self, monitoring: IMonitoring, clock: IReactorTime, state: str = "") -> None:
        """`state` is the name of the state directory in `/healthz`."""
        self._state = state
        self._monitoring = monitoring
        self._clock = clock
        self._parts: tuple[float, dict[str, bytes]] | None = None
        self._ended: tuple[Sequence[SeenPull], bytes] | None = None
        self._has_page = True
        self.events = Events(self._moving_parts, clock)
        self._always: dict[bytes, Page] = {
            b"/healthz": Page("health", self._healthz),
            b"/readyz": Page("health", self._readyz),
            b"/metrics": Page("metrics", self._metrics),
        }
        self._with_page: dict[bytes, Page] = {**self._always, b"/": Page("page", self._page)}
        for name, media_type in _ASSETS.items():
            # Read once, as the files of the package do not change.
            data = files("k3dreg.status").joinpath("assets", name).read_bytes()
            self._with_page[f"/{name}".encode("ascii")] = Page("page", _asset(data, media_type))

    def show_page(self, shown: bool) -> None:
        """Set whether the page at `/` is served, from the next request on.  It is at first."""
        self._has_page = shown

    def page(self, path: bytes) -> Page | None:
        """Return the page at `path`, or None; for a request for events when `events.is_full`, its refusal."""
        if path == b"/events" and self._has_page and self.events.is_full:
            return Page("page", self._no_place)
        return (self._with_page if self._has_page else self._always).get(path)

    def takes_events(self, request: Request, record: Record) -> bool:
        """Answer a request for the stream of events and return True.

        Return False for any other request, and when `events.is_full`: `page` then returns the refusal.
        """
        if not self._has_page or request.path != b"/events" or request.method != b"GET" or self.events.is_full:
            return False
        record.route, record.quiet = "page", True
        self.events.render(request, record, (*_SAFE, _FRESH, ("X-Request-Id", record.id)))
        return True

    async def _healthz(self, request: Request) -> Answer:
        """Answer 200, which shows that the reactor runs: an unreachable engine is no reason to restart k3dreg.

        A node that is to be attached recognizes k3dreg by the answer (`attaching/addresses_for_nodes`), and `k3dreg rm`
        the daemon of a state directory (`commands/removal`).
        """
        return _json(200, {"status": "ok", "registry": "k3dreg", "state": self._state})

    async def _readyz(self, request: Request) -> Answer:
        """Answer 200 if the engine answers, else 503."""
        trouble = await self._monitoring.engine_trouble()
        if trouble:
            return _json(503, {"status": "unavailable", "reason": trouble}, reason=trouble)
        return _json(200, {"status": "ok"})

    async def _metrics(self, request: Request) -> Answer:
        media_type, text = await self._monitoring.metrics()
        return Answer(200, (("Content-Type", media_type), _FRESH), len(text), text)

    async def _page(self, request: Request) -> Answer:
        overview = await self._monitoring.overview()
        address = Address.of(request.getHeader("Host"), secure=bool(request.isSecure()))
        tree = document(overview, self._monitoring.live(), address, self._clock.seconds())
        data = b"<!DOCTYPE html>\n" + await flatten(tree)
        return Answer(200, (("Content-Type", "text/html; charset=utf-8"), _FRESH, *_SAFE), len(data), data)

    async def _no_place(self, request: Request) -> Answer:
        return error_answer(self.events.refusal())

    async def _moving_parts(self) -> Mapping[str, bytes]:
        now = self._clock.seconds()
        if self._parts is None or not 0 <= now - self._parts[0] < _PARTS_ARE_GOOD_FOR:
            live = self._monitoring.live()
            # Pulls that have ended have many requests, and seldom change.
            if self._ended is None or self._ended[0] != live.pulls:
                self._ended = live.pulls, await flatten(pulls(live.pulls))
            trees = {
                "saved": saved(live.saved),
                "running": under_way(live),
                "nodes": nodes(live.nodes),
                "others": others(live.others),
            }
            parts = {name: await flatten(tree) for name, tree in trees.items()}
            self._parts = now, {**parts, "pulls": self._ended[1]}
        return self._parts[1]


def _asset(data: bytes, media_type: str) -> Callable[[Request], Awaitable[Answer]]:
    async def answer(request: Request) -> Answer:
        return Answer(200, (("Content-Type", media_type), ("Cache-Control", "no-cache"), *_SAFE), len(data), data)

    return answer


def _json(status: int, value: Mapping[str, str], *, reason: str = "") -> Answer:
    data = json.dumps(value).encode("ascii") + b"\n"
    return Answer(status, (("Content-Type", "application/json"), _FRESH), len(data), data, reason=reason)
