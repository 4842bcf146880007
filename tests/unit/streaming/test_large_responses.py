"""Bodies of megabytes in the engine's answers: over real sockets."""

from __future__ import annotations

import os
from typing import Any, cast

from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from twisted.web.iweb import IAgent

from k3dreg.docker.endpoint import EngineAddress, make_agent, make_pool
from k3dreg.engine_files.archive_reads import ArchivedFile
from k3dreg.oci.errors import ContentGone, EngineSilent, EngineUnavailable
from k3dreg.streaming.response_body import ResponseBody
from k3dreg.streaming.workers import Workers
from tests.fakes.images import make_tar

reactor = cast(Any, _reactor)

# More than sockets and streams hold, and not a multiple of anything.
SIZE = 20_123_457
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def in_chunks(data: bytes, size: int) -> list[bytes]:
    return [b"%x\r\n%s\r\n" % (len(data[at : at + size]), data[at : at + size]) for at in range(0, len(data), size)]


class Engine(Protocol):
    """Answers every request with the factory's `parts`, one after the other as they are taken; None cuts it off."""

    factory: Any

    def connectionMade(self) -> None:
        self.factory.connections += 1

    def dataReceived(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            self.parts = iter([HEAD, *self.factory.parts])
            cast(Any, self.transport).registerProducer(self, False)

    def resumeProducing(self) -> None:
        part = next(self.parts, b"")
        if part is None:
            cast(Any, self.transport).abortConnection()
        elif part:
            cast(Any, self.transport).write(part)
        else:
            cast(Any, self.transport).unregisterProducer()

    def stopProducing(self) -> None:
        self.factory.stopped += 1


class LargeCase(TestCase):
    timeout = 20

    async def setUp(self) -> None:  # type: ignore[override]
        self.data = os.urandom(SIZE)
        self.engine = cast(Any, Factory.forProtocol(Engine))
        self.engine.connections = self.engine.stopped = 0
        self.parts(self.data)
        path = self.mktemp()
        port = await UNIXServerEndpoint(reactor, path).listen(self.engine)
        self.addCleanup(port.stopListening)
        self.pool = make_pool(reactor)
        self.addCleanup(self.pool.closeCachedConnections)
        self.agent: IAgent = make_agent(reactor, EngineAddress(path=path), pool=self.pool)
        self.workers = Workers(reactor)
        self.workers.start()
        self.addCleanup(self.workers.stop)
        self.read = bytearray()

    def parts(self, data: bytes, size: int = 32 * 1024, end: bytes | None = b"0\r\n\r\n") -> None:
        self.engine.parts = [*in_chunks(data, size), end]

    async def body(self, silence: float = 10.0) -> ResponseBody:
        response = await self.agent.request(b"GET", b"http://engine/")
        body = ResponseBody(response, reactor, silence=silence, what="a test")
        self.addCleanup(body.close)
        return body

    async def read_all(self, body: Any) -> None:
        while data := await body.read():
            self.read += data

    def check(self, data: bytes | None = None) -> None:
        self.assertEqual(len(self.read), SIZE if data is None else len(data))
        self.assertTrue(self.read == (self.data if data is None else data))


class BodyTests(LargeCase):
    async def test_it_is_whole_whatever_its_chunks_and_its_connection_is_used_again(self) -> None:
        for size in (1_000, 32 * 1024, 1_000_000, SIZE):
            self.read.clear()
            self.parts(self.data, size)
            await self.read_all(await self.body())
            self.check()
        self.assertEqual(self.engine.connections, 1)

    async def test_the_end_is_an_end_however_it_is_cut(self) -> None:
        self.engine.parts = [b"3\r\nabc\r\n", b"0\r", b"\n\r", b"\n"]
        await self.read_all(await self.body())
        self.check(b"abc")

    async def test_one_that_breaks_off_fails_after_what_had_come(self) -> None:
        self.parts(self.data, end=None)
        with self.assertRaises(EngineUnavailable):
            await self.read_all(await self.body())
        self.assertTrue(self.data.startswith(self.read))

    async def test_what_is_no_chunk_fails_it(self) -> None:
        self.parts(self.data, end=b"hello\r\n")
        with self.assertRaises(EngineUnavailable):
            await self.read_all(await self.body())
        self.check()

    async def test_nor_is_the_end_of_a_line_waited_for_for_ever(self) -> None:
        self.parts(self.data, end=b"hello")
        with self.assertRaises(EngineSilent):
            await self.read_all(await self.body(silence=0.5))
        self.check()

    async def test_one_that_is_closed_closes_the_connection(self) -> None:
        body = await self.body()
        await body.read()
        body.close()
        await self.assertFailure(Deferred.fromCoroutine(body.read()), CancelledError)
        while not self.engine.stopped:
            await deferLater(reactor, 0.01)
        self.assertEqual(self.flushLoggedErrors(), [])


class FileTests(LargeCase):
    """One file in an archive, as the engine's archive API sends it."""

    async def test_the_file_is_read_and_what_comes_after_it_is_not(self) -> None:
        self.parts(make_tar([("x", self.data)]))
        released: list[None] = []
        file = ArchivedFile(await self.body(), lambda: released.append(None))
        await self.read_all(file)
        self.check()
        while not released:
            await deferLater(reactor, 0.01)
        # The rest of the archive was read.
        await self.read_all(await self.body())
        self.assertEqual(self.engine.connections, 1)

    async def test_a_file_that_breaks_off_does_so(self) -> None:
        self.parts(make_tar([("x", self.data)])[: SIZE // 2])
        file = ArchivedFile(await self.body(), lambda: None)
        await self.assertFailure(Deferred.fromCoroutine(self.read_all(file)), ContentGone)
