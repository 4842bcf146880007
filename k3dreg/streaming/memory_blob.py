"""Small content that is held in memory: manifests, configs, made-up documents."""

from __future__ import annotations

from twisted.internet.interfaces import IConsumer

from k3dreg.oci.digest import Digest
from k3dreg.streaming.content import IBlob


class MemoryBlob:
    """A blob of a few MiB at most, whole in memory, with the media type of what it is."""

    def __init__(self, digest: Digest, data: bytes, media_type: str = "") -> None:
        self.digest = digest
        self.size = len(data)
        self.media_type = media_type
        self._data = data

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Written at once: it is smaller than what a transport buffers for one stalled reader of a file."""
        consumer.write(self._data[start:stop])

    async def read(self) -> bytes:
        return self._data

    async def itself(self) -> IBlob:
        """For callers that expect to open it first."""
        return self
