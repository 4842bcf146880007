"""Handlers for listing tags, referrers and repositories (distribution-spec 1.1, "Content Discovery")."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from k3dreg.oci import media_types
from k3dreg.oci.listing import page_limit
from k3dreg.oci.manifest import LARGEST_MANIFEST
from k3dreg.oci.routes import CatalogRoute, ReferrersRoute, Route, TagsRoute
from k3dreg.registry.use_cases import IDiscovery
from k3dreg.web.answers import Answer
from k3dreg.web.exchange import Exchange, Methods, location

# Bytes of a list of referrers; the rest is on the next page.  Clients limit the size of an index as that of a manifest,
# and a descriptor with annotations may be that large.
_LARGEST_INDEX = LARGEST_MANIFEST - 1024


class DiscoveryHandlers:
    """Handlers of the routes that list tags, referrers and repositories."""

    def __init__(self, discovery: IDiscovery) -> None:
        self._discovery = discovery

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
        limit = page_limit(exchange.query.one("n"))
        names = await self._discovery.tags(route.repository, exchange.query.one("last"), limit + 1)
        page, link = _page(names, limit, location(route.repository, "tags/list"))
        return _json({"name": route.repository.path, "tags": page}, link)

    async def catalog(self, route: CatalogRoute, exchange: Exchange) -> Answer:
        """List the repositories.  `_catalog` is not in the specification, but other registries have it."""
        limit = page_limit(exchange.query.one("n"))
        names = await self._discovery.repositories(exchange.query.one("last"), limit + 1)
        page, link = _page(names, limit, "/v2/_catalog")
        return _json({"repositories": page}, link)

    async def referrers(self, route: ReferrersRoute, exchange: Exchange) -> Answer:
        """end-12a, end-12b: list the referrers of a manifest.

        Without any, the answer is an empty index: 404 would mean that the registry lacks this API.
        """
        wanted, last = exchange.query.one("artifactType"), exchange.query.one("last")
        page = await self._discovery.referrers(route.repository, route.digest, wanted, last, _LARGEST_INDEX)
        body = b'{"schemaVersion": 2, "mediaType": "%s", "manifests": [%s]}' % (
            media_types.OCI_INDEX.encode("ascii"),
            b",".join(page.descriptors.values()),
        )
        headers = [("Content-Type", media_types.OCI_INDEX)]
        if wanted is not None:
            headers.append(("OCI-Filters-Applied", "artifactType"))
        if page.more:
            more = {"last": str([*page.descriptors][-1]), **({} if wanted is None else {"artifactType": wanted})}
            headers.append(("Link", _next(location(route.repository, f"referrers/{route.digest}"), more)))
        return Answer(200, tuple(headers), len(body), body)


def _page(names: Sequence[str], limit: int, path: str) -> tuple[Sequence[str], str]:
    """Return the first `limit` names, and the value of `Link` (RFC 5988), "" for the last page."""
    page = names[:limit]
    # For n=0 there is no next page, or the client would request pages for ever.
    if not page or len(names) <= limit:
        return page, ""
    return page, _next(path, {"n": str(limit), "last": page[-1]})


def _next(path: str, parameters: Mapping[str, str]) -> str:
    return f'<{path}{"&" if "?" in path else "?"}{urlencode(parameters)}>; rel="next"'


def _json(document: object, link: str) -> Answer:
    body = json.dumps(document).encode("ascii")
    headers = (("Content-Type", "application/json"), *((("Link", link),) if link else ()))
    return Answer(200, headers, len(body), body)
