"""Handlers for listing tags, referrers and repositories (distribution-spec 1.1, "Content Discovery")."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from k3dreg.oci import media_types
from k3dreg.oci.listing import Names, page_of
from k3dreg.oci.manifest import LARGEST_MANIFEST
from k3dreg.oci.routes import CatalogRoute, Query, ReferrersRoute, Route, TagsRoute
from k3dreg.registry.use_cases import IDiscovery
from k3dreg.web.answers import Answer
from k3dreg.web.exchange import Exchange, Methods, location

# Bytes of a list of referrers; the rest is on the next page.  Clients limit the size of an index as that of a manifest,
# and a descriptor with annotations may be that large.
_LARGEST_INDEX = LARGEST_MANIFEST - 1024
# Referrers that are processed in one turn of the reactor, which takes about 3 ms.
_AT_ONCE = 50


class DiscoveryHandlers:
    """Handlers of the routes that list tags, referrers and repositories."""

    def __init__(self, discovery: IDiscovery, clock: IReactorTime) -> None:
        """`clock` is the reactor, to which a long list yields between its steps so that other requests go on."""
        self._discovery = discovery
        self._clock = clock

    @property
    def table(self) -> Mapping[type[Route], Methods]:
        """Return the handlers by route and method."""
        return {
            TagsRoute: {"GET": self.tags, "HEAD": self.tags},
            ReferrersRoute: {"GET": self.referrers, "HEAD": self.referrers},
            CatalogRoute: {"GET": self.catalog, "HEAD": self.catalog},
        }

    async def tags(self, route: TagsRoute, exchange: Exchange) -> Answer:
        """end-8a, end-8b: list the tags of a repository."""
        names = await self._discovery.tags(route.repository, next_page=_is_next(exchange.query))
        page, link = _page(names, exchange.query, location(route.repository, "tags/list"))
        return _json({"name": route.repository.path, "tags": page}, link)

    async def catalog(self, route: CatalogRoute, exchange: Exchange) -> Answer:
        """List the repositories.  `_catalog` is not in the specification, but other registries have it."""
        page, link = _page(
            await self._discovery.repositories(next_page=_is_next(exchange.query)), exchange.query, "/v2/_catalog"
        )
        return _json({"repositories": page}, link)

    async def referrers(self, route: ReferrersRoute, exchange: Exchange) -> Answer:
        """end-12a, end-12b: list the referrers of a manifest.

        Without any, the answer is an empty index: 404 would mean that the registry lacks this API.
        """
        wanted, last = exchange.query.one("artifactType"), exchange.query.one("last")
        entries: list[bytes] = []
        room, more_from = _LARGEST_INDEX, ""
        while not more_from:
            # The list may change between two steps, so each step begins after the last digest of the previous one.
            step = self._discovery.referrers(route.repository, route.digest, last, _AT_ONCE)
            asked = [each.digest for each in step if wanted is None or each.descriptor.artifact_type == wanted]
            found = await self._discovery.descriptors(route.repository, asked, room)
            for digest, entry in found.items():
                if len(entry) >= room and entries:
                    more_from = last or ""
                    break
                entries.append(entry)
                room -= len(entry) + 1
                last = str(digest)
            else:
                if found and digest != asked[-1]:
                    continue  # `descriptors` stopped early: the next one exceeds `room`, or is gone
                if len(step) < _AT_ONCE:
                    break
                last = str(step[-1].digest)
                await deferLater(self._clock, 0)
        body = b'{"schemaVersion": 2, "mediaType": "%s", "manifests": [%s]}' % (
            media_types.OCI_INDEX.encode("ascii"),
            b",".join(entries),
        )
        headers = [("Content-Type", media_types.OCI_INDEX)]
        if wanted is not None:
            headers.append(("OCI-Filters-Applied", "artifactType"))
        if more_from:
            more = {"last": more_from, **({} if wanted is None else {"artifactType": wanted})}
            headers.append(("Link", _next(location(route.repository, f"referrers/{route.digest}"), more)))
        return Answer(200, tuple(headers), len(body), body)


def _is_next(query: Query) -> bool:
    """Return whether the client requests a page after the first."""
    return query.one("last") is not None


def _page(names: Sequence[Names], query: Query, path: str) -> tuple[Sequence[str], str]:
    """Return the requested page of the names, and the value of `Link` (RFC 5988), "" for the last page."""
    page = page_of(names, query.one("n"), query.one("last"))
    if not page.more:
        return page.names, ""
    return page.names, _next(path, {"n": str(page.limit), "last": page.names[-1]})


def _next(path: str, parameters: Mapping[str, str]) -> str:
    return f'<{path}{"&" if "?" in path else "?"}{urlencode(parameters)}>; rel="next"'


def _json(document: object, link: str) -> Answer:
    body = json.dumps(document).encode("ascii")
    headers = (("Content-Type", "application/json"), *((("Link", link),) if link else ()))
    return Answer(200, headers, len(body), body)
