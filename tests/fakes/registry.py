"""A registry in memory, whose blobs come as slowly, or break as badly, as a test wants."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IPushProducer, IReactorTime
from zope.interface import implementer

from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import BlobUnknown, ContentError, ManifestUnknown
from k3dreg.oci.reference import Reference, Repository
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob, ServedManifest
from k3dreg.streaming.file_producer import Sender


class WholeBlob:
    """All of it is there, and written at once."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.digest = Digest.of(data)
        self.size = len(data)

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        consumer.write(self.data[start:stop])

    async def read(self) -> bytes:
        return self.data


@implementer(IPushProducer)
class PacedBlob(WholeBlob):
    """Bytes that arrive when the test says so, through a producer as real blobs do it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.consumer: IConsumer | None = None
        self.cancelled = False
        self.stopped = False
        self.paused = False
        self.written = 0
        self._stop = 0
        self._done: Deferred[None] = Deferred()

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        self.written, self._stop = start, stop
        self.consumer = consumer
        consumer.registerProducer(self, True)
        self._done = Deferred(self._cancel)
        await self._done

    def arrive(self, size: int) -> None:
        """`size` more bytes are here."""
        assert self.consumer is not None
        begin, self.written = self.written, min(self.written + size, self._stop)
        self.consumer.write(self.data[begin : self.written])
        if self.written == self._stop:
            self.finish()

    def finish(self) -> None:
        """`send` returns, whether or not everything was written."""
        assert self.consumer is not None
        self.consumer.unregisterProducer()
        self._done.callback(None)

    def fail(self, error: Exception) -> None:
        """`send` raises `error`."""
        assert self.consumer is not None
        self.consumer.unregisterProducer()
        self._done.errback(error)

    def _cancel(self, _: Deferred[None]) -> None:
        self.cancelled = True

    def stopProducing(self) -> None:
        self.stopped = True

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False


class GivingUpBlob(PacedBlob):
    """One that itself ends `send` when its consumer has gone, before the request is told of it."""

    def stopProducing(self) -> None:
        super().stopProducing()
        self._done.cancel()


class EndlessBlob:
    """More bytes than anyone takes, each there at once."""

    def __init__(self, clock: IReactorTime) -> None:
        self.digest = Digest.of(b"endless")
        self.size = 1 << 50
        self._clock = clock

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        await Sender(consumer, self._clock).run(lambda offset, limit: succeed(bytes(limit)), start, stop)

    async def read(self) -> bytes:
        raise ContentError("too large")


class ShortBlob(WholeBlob):
    """One with a fault: it says it is done one byte early."""

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        consumer.write(self.data[start : stop - 1])


class FakeRegistry:
    """Manifests and blobs by what `put` and `tag` were told; anything else is unknown.

    `before` is awaited in every call first: it may raise, or wait.
    """

    def __init__(self) -> None:
        self.blobs: dict[Digest, IBlob] = {}
        self.manifests: dict[str, tuple[Descriptor, IBlob]] = {}
        self.before: Callable[[Trace], Awaitable[None]] = _nothing
        self.authorizations: list[BasicAuth | None] = []
        self.opened = 0

    def put(self, blob: IBlob) -> Digest:
        """Have a blob."""
        self.blobs[blob.digest] = blob
        return blob.digest

    def tag(self, reference: str, media_type: str, blob: IBlob) -> Digest:
        """Have a manifest, by a reference as a person writes it."""
        self.manifests[reference] = (Descriptor(media_type, blob.digest, blob.size), blob)
        return blob.digest

    async def manifest(self, reference: Reference, authorization: BasicAuth | None, trace: Trace) -> ServedManifest:
        self.authorizations.append(authorization)
        await self.before(trace)
        if str(reference) not in self.manifests:
            raise ManifestUnknown(f"no manifest {reference}", advice="docker pull it")
        descriptor, blob = self.manifests[str(reference)]

        async def opened() -> IBlob:
            self.opened += 1
            return blob

        return ServedManifest(descriptor, opened)

    async def blob(self, repository: Repository, digest: Digest, trace: Trace) -> IBlob:
        await self.before(trace)
        if digest not in self.blobs:
            raise BlobUnknown(f"no blob {digest}")
        return self.blobs[digest]


async def _nothing(trace: Trace) -> None:
    pass
