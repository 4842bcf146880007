"""Download a blob from a registry, resuming after each break."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping

from k3dreg.oci.errors import DigestMismatch, EngineError, RedirectRefused, UpstreamFailed
from k3dreg.reporting.logger import make_logger
from k3dreg.store.arrivals import Arrival
from k3dreg.streaming.content import IByteStream
from k3dreg.upstream.registry_requests import RegistryResponse

log = make_logger()

# Attempts in a row that bring no byte, after which a download fails.  An attempt that brings bytes makes progress, so
# the number of those is not limited.
_FRUITLESS = 3

Get = Callable[[Mapping[str, str]], Awaitable[RegistryResponse]]
Body = Callable[[RegistryResponse, str], IByteStream]


class Download:
    """One download of a blob."""

    def __init__(self, name: str, size: int | None, get: Get, body: Body) -> None:
        """`get` requests the blob from the registry, with further headers; `body` returns the body of the answer.

        `name` is for logs.  `size` is in bytes, None if it is not known beforehand.
        """
        self._name = name
        self._size = size
        self._get = get
        self._body = body

    async def fill(self, arrival: Arrival) -> None:
        """Write and verify the whole blob, which clients may read as soon as its size is known.

        Raises `BlobUnknown` or a `Refused` as `get` does, and as `Arrival.verify`.
        """
        fruitless = 0
        while True:
            before = arrival.written
            try:
                await self._attempt(arrival)
                break
            except RedirectRefused:
                raise
            except (EngineError, UpstreamFailed) as error:
                # `ResponseBody` raises a subclass of `EngineError` when a body ends early, also that of a registry.
                fruitless = 0 if arrival.written > before else fruitless + 1
                if fruitless >= _FRUITLESS:
                    raise UpstreamFailed(f"{self._name} broke off at byte {before}: {_plain(error)}") from error
                log.debug("{name} broke off at byte {at}; k3dreg fetches the rest", name=self._name, at=arrival.written)
        await arrival.verify()

    async def _attempt(self, arrival: Arrival) -> None:
        """Request the bytes that are missing, and write them until the answer ends."""
        start = arrival.written
        answer = await self._get({"Range": f"bytes={start}-"} if start else {})
        skip = self._bytes_to_skip(answer, start)
        stream = self._body(answer, self._name)
        try:
            await self._begin(arrival, answer, start)
            while data := await stream.read():
                dropped = min(skip, len(data))
                skip -= dropped
                if dropped == len(data):
                    continue
                await arrival.write(data[dropped:])
                if self._size is not None and arrival.written > self._size:
                    raise DigestMismatch(f"{self._name} is longer than the {self._size} bytes that it should have")
        finally:
            stream.close()
        if self._size is not None and arrival.written < self._size:
            raise UpstreamFailed(f"only {arrival.written} of {self._size} bytes came")

    def _bytes_to_skip(self, answer: RegistryResponse, start: int) -> int:
        """Return how many of the answer's first bytes were written before.

        A server may ignore the range and send the whole blob (RFC 9110, 14.2).  Raises `UpstreamFailed` for an answer
        that leaves a gap.
        """
        if answer.status == 200:
            return start
        found = re.match(r"bytes (\d+)-", answer.header("content-range"))
        first = int(found[1]) if answer.status == 206 and found else -1
        if not 0 <= first <= start:
            self._body(answer, self._name).close()
            raise UpstreamFailed(f"{answer.host} answered {answer.status} to a request for the rest of a blob")
        return start - first

    async def _begin(self, arrival: Arrival, answer: RegistryResponse, start: int) -> None:
        """Let clients read the blob as soon as its size is known.

        Raises `DigestMismatch` if the registry announces another size than is expected.
        """
        if start == 0 and answer.status == 200 and answer.length is not None:
            if self._size not in (None, answer.length):
                raise DigestMismatch(f"{self._name} has {answer.length} bytes, and should have {self._size}")
            self._size = answer.length
        if arrival.blob is None and self._size is not None:
            await arrival.begin(self._size)


def _plain(error: Exception) -> str:
    return str(error).replace("the engine", "the registry")
