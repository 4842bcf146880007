"""Download a blob from a registry into the store: resumable, and readable while it arrives."""

from __future__ import annotations

import re
import threading
from collections.abc import Awaitable, Callable, Mapping

from twisted.python.failure import Failure

from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import DigestMismatch, EngineError, K3dregError, RedirectRefused, StoreError, UpstreamFailed
from k3dreg.reporting.logger import make_logger
from k3dreg.store.arrivals import Arrival
from k3dreg.store.interfaces import IBlobStore, IPassingWriter
from k3dreg.streaming.content import IBlob, IByteStream
from k3dreg.streaming.outcome import Outcome
from k3dreg.streaming.workers import Workers
from k3dreg.upstream.registry_requests import RegistryResponse

log = make_logger()

# Attempts in a row that bring no byte, after which a download fails.  An attempt that brings bytes makes progress, so
# the number of those is not limited.
_FRUITLESS = 3

Get = Callable[[Mapping[str, str]], Awaitable[RegistryResponse]]
Body = Callable[[RegistryResponse, str], IByteStream]


class Download:
    """One download of a blob.

    The caller calls `run` once, and then `succeed` or `give_up`.  Readers wait for `blob`, which is set when the first
    bytes can be read, or for `whole`, which is set when the blob is complete and verified.
    """

    def __init__(
        self, name: str, digest: Digest, size: int | None, get: Get, body: Body, store: IBlobStore, workers: Workers
    ) -> None:
        """`get` requests the blob from the registry, with further headers; `body` returns the body of the answer.

        `name` is for logs.  `size` is in bytes, None if it is not known beforehand.
        """
        self.name = name
        self._digest = digest
        self._size = size
        self._get = get
        self._body = body
        self._store = store
        self._workers = workers
        self._lock = threading.Lock()
        self._writer: IPassingWriter | None = None
        self._arrival: Arrival | None = None
        # Whether readers may get the last byte although the blob could not be kept.
        self.is_verified = False
        # The blob while it arrives, and the complete blob.
        self.blob: Outcome[IBlob] = Outcome()
        self.whole: Outcome[IBlob] = Outcome()

    async def run(self) -> IBlob:
        """Download the blob, and return it when it is complete, verified and in the store.

        Raises `BlobUnknown` or a `Refused` as `get` does, `DigestMismatch`, and `StoreError` when the blob could not be
        kept.  In the last case `is_verified` tells whether its readers may still get all of it.  Cancelling stops the
        download and removes what has arrived.

        The caller then calls `succeed` or `give_up`, after it has removed this download from its table.  Otherwise a
        reader that tries again at once would join a download that has failed.
        """
        try:
            return await self._run()
        finally:
            await self._workers.run(self._abort)

    def succeed(self, blob: IBlob) -> None:
        """Set `blob` and `whole` to what `run` returned."""
        if self._arrival is not None:
            self._arrival.blob.finish(blob)
        self.blob.succeed(blob)
        self.whole.succeed(blob)

    def give_up(self, error: BaseException) -> None:
        """Make `blob` and `whole` fail with `error`, and the arriving blob, too, unless it is verified."""
        known = isinstance(error, K3dregError)
        reason = error if known else UpstreamFailed(f"{self.name} was cancelled: k3dreg is stopping")
        if self._arrival is not None and self.is_verified:
            self._arrival.blob.finish(None)
        elif self._arrival is not None:
            self._arrival.blob.fail(Failure(reason))
        self.blob.fail(reason)
        self.whole.fail(reason)

    @property
    def has_beginning(self) -> bool:
        """Whether a new reader can begin at the first byte."""
        return self._arrival is None or self._arrival.blob.has_beginning

    async def _run(self) -> IBlob:
        self._writer = await self._workers.acquire(
            self._store.passing_writer, lambda writer: writer.abort(), self._digest.algorithm
        )
        fruitless = 0
        while True:
            before = self._writer.written
            try:
                await self._attempt()
                break
            except RedirectRefused:
                raise
            except (EngineError, UpstreamFailed) as error:
                # `ResponseBody` raises a subclass of `EngineError` when a body ends early, also that of a registry.
                fruitless = 0 if self._writer.written > before else fruitless + 1
                if fruitless >= _FRUITLESS:
                    raise UpstreamFailed(f"{self.name} broke off at byte {before}: {_plain(error)}") from error
                log.debug(
                    "{name} broke off at byte {at}; k3dreg fetches the rest", name=self.name, at=self._writer.written
                )
        unkept = await self._verify()
        if unkept is not None:
            self.is_verified = True
            raise unkept
        blob = self._store.get(self._digest)
        if blob is None:
            raise StoreError(f"{self._digest} was evicted as soon as k3dreg had stored it")
        return blob

    async def _attempt(self) -> None:
        """Request the bytes that are missing, and write them until the answer ends."""
        assert self._writer is not None
        start = self._writer.written
        answer = await self._get({"Range": f"bytes={start}-"} if start else {})
        skip = self._bytes_to_skip(answer, start)
        await self._begin(answer, start)
        stream = self._body(answer, self.name)
        try:
            while data := await stream.read():
                dropped = min(skip, len(data))
                skip -= dropped
                if dropped == len(data):
                    continue
                written = await self._workers.run(self._write, data[dropped:])
                if self._size is not None and written > self._size:
                    raise DigestMismatch(f"{self.name} is longer than the {self._size} bytes that it should have")
                await self._advance()
        finally:
            stream.close()
        if self._size is not None and self._writer.written < self._size:
            raise UpstreamFailed(f"only {self._writer.written} of {self._size} bytes came")

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
            self._body(answer, self.name).close()
            raise UpstreamFailed(f"{answer.host} answered {answer.status} to a request for the rest of a blob")
        return start - first

    async def _begin(self, answer: RegistryResponse, start: int) -> None:
        """Let readers have the blob while it arrives, as soon as its size is known.

        Raises `DigestMismatch` if the registry announces another size than is expected.
        """
        if start == 0 and answer.status == 200 and answer.length is not None:
            if self._size not in (None, answer.length):
                self._body(answer, self.name).close()
                raise DigestMismatch(f"{self.name} has {answer.length} bytes, and should have {self._size}")
            self._size = answer.length
        if self._arrival is None and self._size and self._writer is not None:
            self._arrival = await Arrival.begin(self._workers, self._writer, self._digest, self._size)
            self.blob.succeed(self._arrival.blob)

    async def _advance(self) -> None:
        """Tell the readers of new bytes.  Raises `StoreError` when the blob cannot be kept and has no readers."""
        assert self._writer is not None
        if self._arrival is not None:
            await self._arrival.advance()
        elif self._writer.unkept is not None:  # without a known size, no reader can have begun
            raise self._writer.unkept

    async def _verify(self) -> StoreError | None:
        """Verify the blob and put it into the store; return the error if only the latter failed."""
        if self._arrival is not None:
            return await self._arrival.verify()
        await self._workers.run(self._commit)
        assert self._writer is not None
        return self._writer.unkept

    # -- in worker threads ----------------------------------------------------------------------

    def _write(self, data: bytes) -> int:
        with self._lock:
            assert self._writer is not None
            self._writer.write(data)
            return self._writer.written

    def _commit(self) -> None:
        with self._lock:
            assert self._writer is not None
            self._writer.commit(self._digest, self._size)

    def _abort(self) -> None:
        """Remove what was written.  The lock makes this wait for a write whose caller was cancelled."""
        with self._lock:
            if self._writer is not None:
                self._writer.abort()


def _plain(error: Exception) -> str:
    return str(error).replace("the engine", "the registry")
