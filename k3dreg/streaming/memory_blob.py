"""Small content that is held in memory: manifests and configs."""

from __future__ import annotations

from twisted.internet.interfaces import IConsumer

from k3dreg.oci.digest import Digest
from k3dreg.streaming.content import IBlob


class MemoryBlob:
    """A blob of a few MiB at most, held in memory, with its media type."""

    def __init__(self, digest: Digest, data: bytes, media_type: str = "") -> None:
        self.digest = digest
        self.size = len(data)
        self.media_type = media_type
        self._data = data

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Write the bytes from `start` up to, not including, `stop` at once, without waiting for the consumer.

        They need no producer: the transport buffers them, a few MiB at most.
        """
        consumer.write(self._data[start:stop])

    async def read(self) -> bytes:
        return self._data

    async def itself(self) -> IBlob:
        """Return this blob, as the `open` of a `ServedManifest`."""
        return self
