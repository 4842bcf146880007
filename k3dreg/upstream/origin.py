"""Interfaces of the registries that k3dreg asks itself, of the credentials for them, and of the leave to ask them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.reference import Reference, Repository
from k3dreg.streaming.content import IBlob

# A function of a registry's host that raises `RegistryNotAllowed`: see `PermittedRegistries.check`.
MayAsk = Callable[[str], Awaitable[None]]


async def every_registry(registry: str) -> None:
    """Allow every registry."""


class ICredentialSource(Protocol):
    """A source of credentials for registries."""

    async def credentials(self, registry: str) -> Credentials | None:
        """Return the credentials for this registry host ("docker.io" for Docker Hub), None for none.

        Errors are logged and not raised, because the pull goes on without credentials.
        """

    async def registry_auth(self, registry: str) -> str:
        """Return the value of `X-Registry-Auth` for this registry host, "" for none."""

    def refused(self, registry: str) -> None:
        """Forget the remembered credentials for this registry host, because the registry has refused them."""


class ITagDigests(Protocol):
    """The registries that images come from, asked which digest a tag has."""

    async def digest(self, reference: Reference, credentials: Credentials | None) -> Digest:
        """Return the digest of the index or manifest that the reference's tag names in its registry now, by one HEAD.

        Raises `ManifestUnknown`, or a subclass of `Refused` when the registry refuses or cannot be reached.
        """


class IOrigin(Protocol):
    """The registries that images come from, asked by k3dreg itself and not through the engine.

    Every method raises a subclass of `Refused` when a registry refuses or cannot be reached, `DigestMismatch` when it
    sends other bytes than were requested, and `StoreError`.
    """

    async def manifest(self, reference: Reference, credentials: Credentials | None) -> tuple[Descriptor, bytes]:
        """Return a manifest or index, which is verified if `reference` has a digest, and kept in the store.

        Raises `ManifestUnknown`.
        """

    async def blob(
        self, repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None
    ) -> IBlob:
        """Return a blob as soon as it has begun to arrive.  It is kept in the store.

        `size` is in bytes, None if it is not known.  Concurrent calls share one download, which cancelling a call does
        not stop.  Raises `BlobUnknown`.
        """

    async def fetch(
        self, repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None
    ) -> IBlob:
        """Return a blob when it has arrived completely and is verified.  Otherwise like `blob`."""
