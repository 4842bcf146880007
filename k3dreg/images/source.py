"""Interfaces of the sources of an image's bytes."""

from __future__ import annotations

from typing import Protocol

from k3dreg.docker.image import EngineImage
from k3dreg.formats.basic_auth import Credentials
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.reference import Reference
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob


class IImageSource(Protocol):
    """A way to read the images that the engine holds."""

    @property
    def name(self) -> str:
        """Return the source's name, one word, for logs."""

    @property
    def at_hand(self) -> bool:
        """Return whether opening content costs nothing, so that it need not be prepared before a client asks."""

    async def root(self, image: EngineImage, trace: Trace) -> Descriptor:
        """Return the descriptor of the image's root manifest or index, which a client gets for its tag.

        Raises `NotFound` when this source cannot serve the image, and `ImageIncomplete` when the image lacks blobs; the
        next source is then asked.  Any other error ends the request.
        """

    async def open(self, image: EngineImage, digest: Digest, trace: Trace) -> IBlob:
        """Return a part of the image, and set `trace.source` to the word by which log and metrics know its origin.

        Raises `BlobUnknown` if the engine does not hold such a part; the next source is then asked.
        """


class ILooseContent(Protocol):
    """Blobs that the engine holds, whether their image is complete or its pull is still under way."""

    async def loose(self, descriptor: Descriptor) -> IBlob | None:
        """Return the blob, or None if the engine does not hold it or its files cannot be read.

        Raises `EngineUnavailable`.
        """


class IRepair(Protocol):
    """Repairs images of which the engine has lost blobs (moby#49473)."""

    async def ensure(
        self, image: EngineImage, reference: Reference, shown: Credentials | None, trace: Trace
    ) -> EngineImage:
        """Return the image, repaired first if the engine says that it lacks blobs.

        `shown`: the credentials that the client sent.  Raises `ImageIncomplete` when the image cannot be repaired,
        `AuthenticationRequired` when credentials might help, and `EngineError`.  Cancelling does not stop a repair.
        """

    async def mend(
        self, image: EngineImage, reference: Reference, shown: Credentials | None, trace: Trace
    ) -> EngineImage:
        """Repair an image whose blobs were missing when it was read, which older engines do not say; else as `ensure`.

        Raises as `ensure`.
        """
