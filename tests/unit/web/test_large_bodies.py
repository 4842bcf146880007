"""Bodies of megabytes that worker threads write: over real sockets."""

from __future__ import annotations

import os
import threading
from typing import Any, cast

from OpenSSL.crypto import FILETYPE_PEM, load_certificate, load_privatekey
from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import SSL4ClientEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory

from k3dreg.formats.upload_session import ContentRange
from k3dreg.oci.errors import StoreFull
from k3dreg.oci.reference import Repository
from k3dreg.registry.use_cases import UploadStatus
from k3dreg.streaming.byte_stream import MOST_UNREAD
from k3dreg.streaming.content import IByteStream
from k3dreg.streaming.workers import Workers
from k3dreg.web.site import make_site
from tests.fakes.certificates import Authority
from tests.fakes.registry import FakeRegistry
from tests.fakes.wire import Wire, WireTestCase, request
from tests.unit.web.test_push_api import MIB, SESSION, FakeUploads, chunked

reactor = cast(Any, _reactor)

# More than sockets and streams hold, and not a multiple of anything.
SIZE = 18_011_783


class WrittenUploads(FakeUploads):
    """Worker threads keep the bytes."""

    def __init__(self, workers: Workers) -> None:
        super().__init__()
        self.full = False
        # A worker thread that writes waits for it.
        self.lock = threading.Lock()
        self._workers = workers

    async def append(
        self,
        repository: Repository,
        session: str,
        body: IByteStream,
        content_range: ContentRange | None,
        length: int | None,
    ) -> UploadStatus:
        self.bodies.append(body)
        while data := await body.read():
            await self._workers.run(self.write, data)
        return self.status(repository, session)

    def write(self, data: bytes) -> None:
        with self.lock:
            if self.full:
                raise StoreFull("no room")
            self.data += data


class LargeCase(WireTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.workers = Workers(reactor)
        self.workers.start()
        self.addCleanup(self.workers.stop)
        self.uploads = WrittenUploads(self.workers)
        self.site = make_site(FakeRegistry(), Clock(), uploads=self.uploads)
        self.port = self.listen(self.site)
        self.data = os.urandom(SIZE)

    def sized(self, body: bytes | None = None) -> bytes:
        """A request with a length."""
        body = self.data if body is None else body
        return request("PATCH", SESSION, Content_Length=str(len(body))) + body

    def in_chunks(self, size: int) -> bytes:
        chunks = [self.data[start : start + size] for start in range(0, SIZE, size)]
        return request("PATCH", SESSION, Transfer_Encoding="chunked") + chunked(*chunks)

    def check_data(self, expected: bytes) -> None:
        """Without megabytes in the message."""
        self.assertEqual(len(self.uploads.data), len(expected))
        self.assertTrue(self.uploads.data == expected)


class WholeTests(LargeCase):
    async def test_a_body_is_whole_and_what_comes_after_it_is_the_next_request(self) -> None:
        wire = await self.connect(self.port)
        wire.transport.write((self.sized() + request("GET", "/v2/")) * 2)
        for number in (1, 2):
            self.assertEqual((await wire.response()).headers["range"], f"0-{number * SIZE - 1}")
            self.assertEqual((await wire.response()).status, 200)
        self.check_data(self.data * 2)

    async def test_chunks_of_any_size_and_trailers(self) -> None:
        for size in (1000, 32 * 1024, MIB, SIZE):
            self.uploads.data.clear()
            wire = await self.connect(self.port)
            body = self.in_chunks(size)
            wire.transport.write(body[:-2] + b"X-Trailer: 1\r\n\r\n" + request("GET", "/v2/"))
            self.assertEqual((await wire.response()).headers["range"], f"0-{SIZE - 1}")
            self.assertEqual((await wire.response()).status, 200)
            self.check_data(self.data)

    async def test_eight_at_once(self) -> None:
        wires = [await self.connect(self.port) for _ in range(8)]
        for wire in wires:
            wire.transport.write(self.in_chunks(40_000))
        for wire in wires:
            self.assertEqual((await wire.response()).status, 202)
        self.assertEqual(len(self.uploads.data), 8 * SIZE)

    async def test_over_a_unix_socket_it_is_the_same(self) -> None:
        path = self.mktemp()
        port = reactor.listenUNIX(path, self.site)
        self.addCleanup(port.stopListening)
        wire = await connectProtocol(UNIXClientEndpoint(reactor, path), Wire())
        wire.transport.write(self.sized())
        self.assertEqual((await wire.response()).status, 202)
        self.check_data(self.data)
        wire.transport.loseConnection()
        await wire.closed()

    async def test_over_tls_it_is_the_same(self) -> None:
        pair = Authority().sign("localhost")
        options = CertificateOptions(
            load_privatekey(FILETYPE_PEM, pair.key), load_certificate(FILETYPE_PEM, pair.certificate)
        )
        port = self.listen(cast(Any, TLSMemoryBIOFactory(options, False, self.site)))
        wire = await connectProtocol(SSL4ClientEndpoint(reactor, "127.0.0.1", port, CertificateOptions()), Wire())
        wire.transport.write(self.sized())
        self.assertEqual((await wire.response()).status, 202)
        self.check_data(self.data)
        wire.transport.abortConnection()
        await wire.closed()


class EndTests(LargeCase):
    async def held(self, wire: Wire) -> None:
        """Send a request, and let a worker thread stop in the middle of writing it."""
        self.uploads.lock.acquire()
        wire.transport.write(self.sized())
        while not self.uploads.bodies or not self.uploads.bodies[0].received:
            await self.turn()

    async def test_a_chunk_that_is_none_is_400_and_the_end(self) -> None:
        wire = await self.connect(self.port)
        body = self.in_chunks(MIB)
        wire.transport.write(body[: SIZE // 2 + 7] + bytes(4 * MIB))
        self.assertEqual((await wire.response(with_body=False)).status, 400)
        await wire.closed()
        self.assertTrue(self.data.startswith(self.uploads.data[: SIZE // 3]))

    async def test_it_is_the_end_also_where_the_reading_was_stopped(self) -> None:
        wire = await self.connect(self.port)
        self.uploads.lock.acquire()
        wire.transport.write(request("PATCH", SESSION, Transfer_Encoding="chunked") + chunked(bytes(9))[:-5])
        while not self.uploads.bodies or not self.uploads.bodies[0].received:
            await self.turn()
        wire.transport.write(chunked(bytes(MOST_UNREAD + 1))[:-5] + b"no chunk\r\n")
        while not self.uploads.bodies[0].received > MOST_UNREAD:
            await self.turn()
        self.uploads.lock.release()
        self.assertEqual((await wire.response(with_body=False)).status, 400)
        await wire.closed()

    async def test_a_failure_of_the_disk_is_told(self) -> None:
        wire = await self.connect(self.port)
        self.uploads.full = True
        wire.transport.write(self.sized())
        answer = await wire.response()
        self.assertEqual((answer.status, answer.headers["connection"]), (507, "close"))
        await wire.closed()

    async def test_a_client_that_leaves_in_the_middle_is_noticed(self) -> None:
        wire = await self.connect(self.port)
        wire.transport.write(self.sized()[: SIZE // 2])
        while len(self.uploads.data) < SIZE // 3:
            await self.turn()
        wire.transport.abortConnection()
        (line,) = await self.logged()
        self.assertIn("PATCH app upload 499", line)

    async def test_a_client_that_leaves_is_noticed_when_the_worker_thread_goes_on(self) -> None:
        wire = await self.connect(self.port)
        await self.held(wire)
        wire.transport.abortConnection()
        for _ in range(50):
            await self.turn()
        self.uploads.lock.release()
        (line,) = await self.logged()
        self.assertIn("PATCH app upload 499", line)
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_others_are_served_while_a_worker_thread_writes(self) -> None:
        wire, other = await self.connect(self.port), await self.connect(self.port)
        await self.held(wire)
        self.assertEqual((await other.ask("GET", "/v2/")).status, 200)
        self.uploads.lock.release()
        self.assertEqual((await wire.response()).status, 202)
        self.check_data(self.data)
