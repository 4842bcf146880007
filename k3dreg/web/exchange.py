"""The parts of a request that a handler receives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import quote

from attrs import frozen

from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.oci.reference import Repository
from k3dreg.oci.routes import Query, Route
from k3dreg.reporting.trace import Trace
from k3dreg.web.answers import Answer, Conditions
from k3dreg.web.request_body import RequestBody


@frozen
class RequestContent:
    """The content of a request.  A handler that does not need `body` need not read it."""

    body: RequestBody
    media_type: str = ""
    content_range: str | None = None


@frozen
class Exchange:
    """A request as handlers see it.

    `with_body` is False for HEAD, whose answer has the headers of the answer to GET, and no body.
    """

    query: Query
    with_body: bool
    conditions: Conditions
    authorization: BasicAuth | None
    trace: Trace
    content: RequestContent


Handler = Callable[[Any, Exchange], Awaitable[Answer]]
Methods = Mapping[str, Handler]


class Handlers(Protocol):
    """A set of handlers of some routes."""

    @property
    def table(self) -> Mapping[type[Route], Methods]:
        """Return the handlers by route and method, according to the current settings."""


def location(repository: Repository, rest: str) -> str:
    """Return the path, with `ns`, of something in a repository.

    It has no host, because k3dreg does not know by which host and port a client reaches it through port mappings.  A
    client that sent `ns` must send it again, or it would reach another repository.
    """
    ns = "" if repository.registry is None else f"?ns={quote(repository.registry, safe='')}"
    return f"/v2/{repository.path}/{rest}{ns}"
