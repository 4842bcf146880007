"""Note what a manifest lists in the trace of the request that gets it."""

from __future__ import annotations

from attrs import evolve, frozen
from twisted.internet.interfaces import IConsumer

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import InvalidDigest, InvalidManifest
from k3dreg.oci.manifest import Manifest
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob
from k3dreg.web.answers import Answer

# Bytes.  A manifest of 127 layers, which is as many as Docker builds, has 30 KB, and with annotations for each layer
# 100 KB.  Parsing this much takes some milliseconds, in which the reactor does nothing else.
_LARGEST = 256 * 1024


def noted(answer: Answer, trace: Trace) -> Answer:
    """Return the answer to a request for the manifest `trace.manifest`, so that sending it sets `trace.contents`."""
    manifest = trace.manifest
    if manifest is None or manifest.size > _LARGEST:
        return answer
    parts = tuple(evolve(part, blob=_Noted(part.blob, manifest.media_type, trace)) for part in answer.parts)
    return evolve(answer, parts=parts)


@frozen
class _Noted:
    """A manifest that is noted before it is sent.  Implements `IBlob`."""

    _blob: IBlob
    _media_type: str
    _trace: Trace

    @property
    def digest(self) -> Digest:
        return self._blob.digest

    @property
    def size(self) -> int:
        return self._blob.size

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Read the manifest, note what it lists, and write the bytes from `start` up to `stop` at once."""
        data = await self.read()
        try:
            self._trace.contents = Manifest.parse(data, self._media_type)
        except (InvalidManifest, InvalidDigest):
            self._trace.contents = None  # the client gets it as it is
        consumer.write(data[start:stop])

    async def read(self) -> bytes:
        return await self._blob.read()
