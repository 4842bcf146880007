"""A blob that is known by digest and size before there is anything to read it from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.interfaces import IConsumer

from k3dreg.oci.digest import Digest
from k3dreg.streaming.content import IBlob


class PendingBlob:
    """Its head can be sent at once; its bytes follow when `opened`, which is asked at each use, gives the real one."""

    def __init__(self, digest: Digest, size: int, opened: Callable[[], Awaitable[IBlob]]) -> None:
        self.digest = digest
        self.size = size
        self._opened = opened

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        """As the real one does; raises what `opened` raises, too.  Cancelling ends the waiting."""
        blob = await self._opened()
        await blob.send(consumer, start, stop)

    async def read(self) -> bytes:
        """As the real one does."""
        return await (await self._opened()).read()
