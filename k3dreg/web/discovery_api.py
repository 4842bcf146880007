"""Finding out what is here (distribution-spec 1.1, "Content Discovery"): tags, referrers, repositories."""

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

# Bytes of a list of referrers, beyond which the rest is on the next page: clients read no more of an index than of a
# manifest, and annotations make a descriptor as large as that.
_LARGEST_INDEX = LARGEST_MANIFEST - 1024
# Referrers that are looked at in one turn of the reactor: about 3 ms.
_AT_ONCE = 50


class DiscoveryHandlers:
    """Handlers of the lists."""

    def __init__(self, discovery: IDiscovery, clock: IReactorTime) -> None:
        """`clock` gives other requests their turn while a long list is written."""
        self._discovery = discovery
        self._clock = clock

    @property
    def table(self) -> Mapping[type[Route], Methods]:
        """Which handler answers which route with which method."""
        return {
            TagsRoute: {"GET": self.tags, "HEAD": self.tags},
            ReferrersRoute: {"GET": self.referrers, "HEAD": self.referrers},
            CatalogRoute: {"GET": self.catalog, "HEAD": self.catalog},
        }

    async def tags(self, route: TagsRoute, exchange: Exchange) -> Answer:
        """end-8a, end-8b."""
        names = await self._discovery.tags(route.repository, next_page=_is_next(exchange.query))
        page, link = _page(names, exchange.query, location(route.repository, "tags/list"))
        return _json({"name": route.repository.path, "tags": page}, link)

    async def catalog(self, route: CatalogRoute, exchange: Exchange) -> Answer:
        """Not in the specification, but every registry has it."""
        page, link = _page(
            await self._discovery.repositories(next_page=_is_next(exchange.query)), exchange.query, "/v2/_catalog"
        )
        return _json({"repositories": page}, link)

    async def referrers(self, route: ReferrersRoute, exchange: Exchange) -> Answer:
        """end-12a, end-12b.  No referrers is an empty index: only a registry without this API says 404."""
        wanted, last = exchange.query.one("artifactType"), exchange.query.one("last")
        entries: list[bytes] = []
        room, more_from = _LARGEST_INDEX, ""
        while not more_from:
            # Between two steps the list may change: each begins behind the last digest of the one before.
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
                    continue  # the next is too large, or gone
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
    """Whether the client has had a page already."""
    return query.one("last") is not None


def _page(names: Sequence[Names], query: Query, path: str) -> tuple[Sequence[str], str]:
    """The names that were asked for, and the value of `Link` where there are more (RFC 5988)."""
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
