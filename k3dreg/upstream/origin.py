"""Interfaces of registries that are asked directly, and of the credentials for them."""

from __future__ import annotations

from typing import Protocol

from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.reference import Reference, Repository
from k3dreg.streaming.content import IBlob


class ICredentialSource(Protocol):
    """Credentials for a registry."""

    async def credentials(self, registry: str) -> Credentials | None:
        """The credentials for this registry host ("docker.io" for Docker Hub), None for none.

        Trouble in finding them is logged, not raised: the pull goes on as one without.
        """

    async def registry_auth(self, registry: str) -> str:
        """The value of `X-Registry-Auth` for this registry host, "" for none."""

    def refused(self, registry: str) -> None:
        """The registry did not take what was given for it: what is remembered of it is forgotten."""


class IOrigin(Protocol):
    """The registries that images come from, asked by k3dreg itself and not through the engine.

    All of it raises `Refused` of the right kind when a registry says no or cannot be reached, `DigestMismatch` when
    it sends other bytes than were asked for, and `StoreError`.
    """

    async def manifest(self, reference: Reference, credentials: Credentials | None) -> tuple[Descriptor, bytes]:
        """A manifest or index, verified if it is asked for by digest, and kept in the store.

        Raises `ManifestUnknown`.
        """

    async def blob(
        self, repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None
    ) -> IBlob:
        """A blob as soon as it has begun to arrive; it is kept in the store.  Raises `BlobUnknown`.

        `size` in bytes, None if it is not known.  One download however many ask; cancelling leaves it running.
        """

    async def fetch(
        self, repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None
    ) -> IBlob:
        """As `blob`, but once all of it is here and verified."""
