"""Pages about the daemon itself, as the resource tree calls them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import frozen
from twisted.web.server import Request

from k3dreg.web.answers import Answer
from k3dreg.web.request_log import Record

# What an orchestrator asks, which has no password.
HEALTH = (b"/healthz", b"/readyz")


@frozen
class Page:
    """A page: its kind for the metrics, and what answers it."""

    route: str
    answer: Callable[[Request], Awaitable[Answer]]


class IPages(Protocol):
    """The pages about the daemon."""

    def page(self, path: bytes) -> Page | None:
        """Return what is at this path, or None."""

    def takes_events(self, request: Request, record: Record) -> bool:
        """Answer a request for the stream of events; False when it is not one."""
