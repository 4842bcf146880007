"""The interface of the pages about the daemon, as the resource tree calls them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import frozen
from twisted.web.server import Request

from k3dreg.web.answers import Answer
from k3dreg.web.request_log import Record

# Paths that need no password, as an orchestrator's health checks have none.
HEALTH = (b"/healthz", b"/readyz")


@frozen
class Page:
    """A page: the name of its route in the metrics, and the function that answers requests for it."""

    route: str
    answer: Callable[[Request], Awaitable[Answer]]


class IPages(Protocol):
    """The pages about the daemon."""

    def page(self, path: bytes) -> Page | None:
        """Return the page at `path`, or None."""

    def takes_events(self, request: Request, record: Record) -> bool:
        """Answer a request for the stream of events and return True; return False for any other request."""
