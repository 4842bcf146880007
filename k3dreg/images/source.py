"""Interfaces of the ways to an image's bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from k3dreg.docker.image import EngineImage
from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.reference import Reference
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob


class ICatalogue(Protocol):
    """Which content belongs to which image, remembered across restarts."""

    def images_with(self, digest: Digest) -> Sequence[EngineImage]:
        """The images that `digest` is known to be a part of, most recently seen first.  No I/O."""

    def root_of(self, image: EngineImage) -> Descriptor | None:
        """The root recorded for the image ID, if any.  No I/O."""

    def is_recorded(self, image: EngineImage) -> bool:
        """Whether `record` was called for this very `fingerprint`.  No I/O."""

    async def record(self, image: EngineImage, root: Descriptor, contents: Iterable[Digest]) -> None:
        """Remember the image's root and everything that is known to be part of it.  On disk when it returns."""

    async def forget(self, image: Digest) -> None:
        """The engine does not hold the image any more."""


class IImageSource(Protocol):
    """A way to the bytes of images that the engine holds."""

    @property
    def name(self) -> str:
        """One word, for logs."""

    @property
    def at_hand(self) -> bool:
        """Whether what it opens costs nothing, so that there is no use in opening it beforehand."""

    async def root(self, image: EngineImage, trace: Trace) -> Descriptor:
        """The descriptor of the image's root: what its tag means to a client.

        Raises `NotFound` when this source does not serve such images, `ImageIncomplete` if the image is.
        """

    async def open(self, image: EngineImage, digest: Digest, trace: Trace) -> IBlob:
        """Some content of the image.  Raises `BlobUnknown` if it is not part of it, or not held."""


class ILooseContent(Protocol):
    """Content that the engine has, whether it belongs to a whole image already or not."""

    async def loose(self, descriptor: Descriptor) -> IBlob | None:
        """The content, if the engine has it and it can be read one by one; None else.  Raises `EngineUnavailable`."""


class IRepair(Protocol):
    """Mends images of which the engine has lost blobs (moby#49473)."""

    async def ensure(
        self, image: EngineImage, reference: Reference, shown: Credentials | None, trace: Trace
    ) -> EngineImage:
        """The image, mended if the engine says that it lacks blobs; most are whole, and given back at once.

        `shown` is what the client sent.  Raises `ImageIncomplete` when it cannot be mended,
        `AuthenticationRequired` when credentials might help, and `EngineError`.  Cancelling leaves a repair running.
        """

    async def mend(
        self, image: EngineImage, reference: Reference, shown: Credentials | None, trace: Trace
    ) -> EngineImage:
        """As `ensure`, for an image that was found to lack blobs by reading it: older engines do not say so."""
