"""A blob whose digest and size are known before its bytes can be read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.interfaces import IConsumer

from k3dreg.oci.digest import Digest
from k3dreg.streaming.content import IBlob


class PendingBlob:
    """A blob that answers a HEAD at once, and whose bytes come from the blob that `opened` returns.

    Each `send` and `read` calls `opened` and waits for it.
    """

    def __init__(self, digest: Digest, size: int, opened: Callable[[], Awaitable[IBlob]]) -> None:
        self.digest = digest
        self.size = size
        self._opened = opened

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """Wait for the real blob, and send it.  Raises what `opened` and its `send` raise; cancelling cancels both."""
        blob = await self._opened()
        await blob.send(consumer, start, stop)

    async def read(self) -> bytes:
        """Wait for the real blob, and return its bytes.  Raises what `opened` and its `read` raise."""
        return await (await self._opened()).read()
