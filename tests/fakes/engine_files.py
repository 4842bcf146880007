"""The files of an engine's host in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.web.iweb import IResponse

from k3dreg.docker.image import EngineImage, EngineInfo
from k3dreg.engine_files.engine_files import FileStat
from k3dreg.oci.descriptor import Descriptor
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import ContentError, FileAbsent, FilesUnreachable
from k3dreg.oci.platform import Platform
from k3dreg.streaming.content import IBlob, IByteStream, IContentSink
from k3dreg.streaming.memory_blob import MemoryBlob


class FakeEngineFiles:
    """`host` is everything there is, by path.  `asked` are the paths that were asked for, whatever for."""

    def __init__(self, host: dict[str, bytes]) -> None:
        self.host = host
        self.asked: list[str] = []
        self.fills = 0
        self.given = 0  # bytes of layers
        self.unreachable = False
        self.held: Deferred[None] | None = None  # a fill waits for it half-way

    async def stat(self, path: str) -> FileStat:
        self._ask(path)
        if path in self.host:
            return FileStat(len(self.host[path]), True, False)
        if any(name.startswith(path + "/") for name in self.host):
            return FileStat(4096, False, True)
        raise FileAbsent("the engine's host has no such file")

    async def read(self, path: str, limit: int) -> bytes:
        self._ask(path)
        if path not in self.host:
            raise FileAbsent("the engine's host has no such file")
        if len(self.host[path]) > limit:
            raise ContentError("too long")
        return self.host[path]

    async def blob(self, path: str, digest: Digest, size: int | None = None) -> IBlob:
        data = await self.read(path, 1 << 40)
        if size not in (None, len(data)):
            raise ContentError(f"{digest} is not of that size")
        return _FileBlob(digest, data)

    async def fill(self, directory: str, sink: IContentSink, progress: Callable[[], Awaitable[None]]) -> None:
        self.fills += 1
        self._ask(directory)
        while (wanted := sink.wanted) is not None:
            data = self.host.get(f"{directory}/{wanted.decode()}")
            if data is None or len(data) != sink.missing:
                raise FileAbsent("a file of a layer is not there")
            half = len(data) // 2
            for part in filter(None, (data[:half], data[half:])):
                sink.add(part)
                self.given += len(part)
                sink.flush()
                await progress()
                if self.held is not None:
                    held, self.held = self.held, None
                    await held
        sink.flush()

    async def close(self) -> None: ...

    def _ask(self, path: str) -> None:
        self.asked.append(path)
        if self.unreachable:
            raise FilesUnreachable("the engine's files cannot be read in this way")


class _FileBlob(MemoryBlob):
    async def read(self) -> bytes:
        data = await super().read()
        if Digest.of(data, self.digest.algorithm) != self.digest:
            raise ContentError(f"{self.digest} does not hash to its digest")
        return data


class FakeInfo:
    """An engine that only says what it is."""

    def __init__(self, info: EngineInfo) -> None:
        self.told = info

    async def info(self) -> EngineInfo:
        return self.told

    async def inspect(self, name: str) -> EngineImage:
        raise NotImplementedError

    async def pull(self, name: str, registry_auth: str, progress: object) -> None:
        raise NotImplementedError

    async def save(self, image: Digest) -> IByteStream:
        raise NotImplementedError

    async def distribution(self, name: str, registry_auth: str) -> Descriptor:
        raise NotImplementedError

    async def pulled_from(self, name: str) -> Sequence[str]:
        raise NotImplementedError

    async def platforms(self, name: str, registry_auth: str) -> Sequence[Platform]:
        raise NotImplementedError

    async def request(self, method: str, path: str, **options: object) -> IResponse:
        raise NotImplementedError

    def body(self, response: IResponse, what: str, *, silence: float | None = None) -> IByteStream:
        raise NotImplementedError
