"""What a handler is given of a request."""

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
    """What a request brings.  `body` has to be read only by those who want it."""

    body: RequestBody
    media_type: str = ""
    content_range: str | None = None


@frozen
class Exchange:
    """A request, with no more HTTP in it than handlers need.

    `with_body` is False for HEAD, whose answer is to be that of GET without its body.
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
    """Handlers of some routes."""

    @property
    def table(self) -> Mapping[type[Route], Methods]:
        """Return which handler answers which route with which method, by the settings that are in force now."""


def location(repository: Repository, rest: str) -> str:
    """A relative reference to something in a repository.

    Relative, because what a client calls this registry is not what it is called here: there are port mappings between
    them.  A client that said `ns` must say it again, or it would reach another repository.
    """
    ns = "" if repository.registry is None else f"?ns={quote(repository.registry, safe='')}"
    return f"/v2/{repository.path}/{rest}{ns}"
