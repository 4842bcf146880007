"""Handlers for deleting (distribution-spec 1.1, "Content Management")."""

from __future__ import annotations

from collections.abc import Mapping

from k3dreg.oci.reference import Tag
from k3dreg.oci.routes import BlobRoute, ManifestRoute, Route
from k3dreg.registry.use_cases import IUploads
from k3dreg.web.answers import Answer
from k3dreg.web.exchange import Exchange, Methods

_DELETED = Answer(202, (), 0)


class ManagementHandlers:
    """Handlers of DELETE for manifests, tags and blobs."""

    def __init__(self, uploads: IUploads) -> None:
        self._uploads = uploads

    @property
    def table(self) -> Mapping[type[Route], Methods]:
        """Return the handlers by route and method; none while deleting is turned off, so that DELETE gets 405."""
        if not self._uploads.deleting:
            return {}
        return {ManifestRoute: {"DELETE": self.delete_manifest}, BlobRoute: {"DELETE": self.delete_blob}}

    async def delete_manifest(self, route: ManifestRoute, exchange: Exchange) -> Answer:
        """end-9: delete a tag, or by digest the manifest with all its tags.

        `?with=manifest`, which `k3dreg rm` sends, deletes with a tag the manifests to which nothing else leads.
        """
        target = route.reference.target
        if isinstance(target, Tag):
            with_manifests = exchange.query.one("with") == "manifest"
            await self._uploads.delete_tag(route.repository, target, with_manifests=with_manifests)
        else:
            await self._uploads.delete_manifest(route.repository, target)
        return _DELETED

    async def delete_blob(self, route: BlobRoute, exchange: Exchange) -> Answer:
        """end-10: delete a blob."""
        await self._uploads.delete_blob(route.repository, route.digest)
        return _DELETED
