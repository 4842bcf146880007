"""Where images come from, with whose credentials, and what is done about those that lack something."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import frozen
from zope.interface import Attribute, Interface

from k3dreg.interfaces.content import IBlob
from k3dreg.model.credentials import Credentials
from k3dreg.model.descriptor import Descriptor
from k3dreg.model.digest import Digest
from k3dreg.model.engine import EngineImage
from k3dreg.model.reference import Reference, Repository
from k3dreg.model.trace import Trace


class ICredentialSource(Interface):
    """Credentials for a registry."""

    async def credentials(registry: str) -> Credentials | None:
        """The credentials for this registry host ("docker.io" for Docker Hub), None for none.

        Trouble in finding them is logged, not raised: the pull goes on as one without.
        """

    async def registry_auth(registry: str) -> str:
        """The value of `X-Registry-Auth` for this registry host, "" for none."""

    def refused(registry: str) -> None:
        """The registry did not take what was given for it: what is remembered of it is forgotten."""


class IImageSource(Interface):
    """A way to the bytes of images that the engine holds."""

    name: str = Attribute("one word, for logs")
    at_hand: bool = Attribute("whether what it opens costs nothing, so that there is no use in opening it beforehand")

    async def root(image: EngineImage, trace: Trace) -> Descriptor:
        """The descriptor of the image's root: what its tag means to a client.

        Raises `NotFound` when this source does not serve such images, `ImageIncomplete` if the image is.
        """

    async def open(image: EngineImage, digest: Digest, trace: Trace) -> IBlob:
        """Some content of the image.  Raises `BlobUnknown` if it is not part of it, or not held."""


class ILooseContent(Interface):
    """Content that the engine has, whether it belongs to a whole image already or not."""

    async def loose(descriptor: Descriptor) -> IBlob | None:
        """The content, if the engine has it and it can be read one by one; None else.  Raises `EngineUnavailable`."""


class IRepair(Interface):
    """Mends images of which the engine has lost blobs (moby#49473)."""

    async def ensure(image: EngineImage, reference: Reference, shown: Credentials | None, trace: Trace) -> EngineImage:
        """The image, mended if the engine says that it lacks blobs; most are whole, and given back at once.

        `shown` is what the client sent.  Raises `ImageIncomplete` when it cannot be mended,
        `AuthenticationRequired` when credentials might help, and `EngineError`.  Cancelling leaves a repair running.
        """

    async def mend(image: EngineImage, reference: Reference, shown: Credentials | None, trace: Trace) -> EngineImage:
        """As `ensure`, for an image that was found to lack blobs by reading it: older engines do not say so."""


class IOrigin(Interface):
    """The registries that images come from, asked by k3dreg itself and not through the engine.

    All of it raises `Refused` of the right kind when a registry says no or cannot be reached, `DigestMismatch` when
    it sends other bytes than were asked for, and `StoreError`.
    """

    async def manifest(reference: Reference, credentials: Credentials | None) -> tuple[Descriptor, bytes]:
        """A manifest or index, verified if it is asked for by digest, and kept in the store.

        Raises `ManifestUnknown`.
        """

    async def blob(repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None) -> IBlob:
        """A blob as soon as it has begun to arrive; it is kept in the store.  Raises `BlobUnknown`.

        `size` in bytes, None if it is not known.  One download however many ask; cancelling leaves it running.
        """

    async def fetch(repository: Repository, digest: Digest, size: int | None, credentials: Credentials | None) -> IBlob:
        """As `blob`, but once all of it is here and verified."""


class IFallback(Interface):
    """Where content may be had that no source gives."""

    async def manifest(reference: Reference, shown: Credentials | None, trace: Trace) -> ServedManifest:
        """A manifest, as its registry has it now.  `shown` is what the client sent.

        Raises `NotFound`, or a `Refused` that tells whether credentials would help.
        """

    async def blob(repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        """Some content of a repository; it may still be arriving.  Raises `NotFound`, `Refused`, `StoreError`."""


@frozen
class ServedManifest:
    """What a reference means.  The descriptor answers a HEAD; `open` gives the bytes for a GET.

    `open` may raise what `IRegistry.blob` raises.
    """

    descriptor: Descriptor
    open: Callable[[], Awaitable[IBlob]]
