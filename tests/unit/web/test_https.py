"""HTTPS on the wire: whole answers, refusals that arrive, and plain HTTP that is told what is wrong."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ClientEndpoint, connectProtocol, serverFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock

from k3dreg.web.auth import Access
from k3dreg.web.https import TlsReactor
from k3dreg.web.site import make_site
from tests.fakes.certificates import Authority
from tests.fakes.registry import EndlessBlob, FakeRegistry, PacedBlob, WholeBlob
from tests.fakes.wire import Wire, WireTestCase, reactor, request
from tests.unit.web.test_auth import OURS, OneUser
from tests.unit.web.test_push_api import UPLOADS, FakeUploads


class TlsTests(WireTestCase):
    def setUp(self) -> None:
        super().setUp()
        pair = Authority().sign("localhost")
        for name, text in (("key.pem", pair.key), ("cert.pem", pair.certificate)):
            Path(name).write_bytes(text)
        self.clock = Clock()
        self.registry = FakeRegistry()
        self.uploads = FakeUploads()
        access = Access(OneUser(), anonymous_pull=True)
        self.site = site = make_site(self.registry, self.clock, uploads=self.uploads, access=access)
        description = "ssl:0:interface=127.0.0.1:privateKey=key.pem:certKey=cert.pem"
        listening = self.successResultOf(serverFromString(TlsReactor(reactor), description).listen(site))
        self.addCleanup(listening.stopListening)
        self.port = listening.getHost().port
        self.factory = listening.factory

    async def connect_tls(self) -> Wire:
        # Whom it talks to is not these tests' business.
        endpoint = SSL4ClientEndpoint(reactor, "127.0.0.1", self.port, CertificateOptions())
        wire: Wire = await connectProtocol(endpoint, Wire())

        async def close() -> None:
            if wire.lost is None:
                wire.transport.abortConnection()
                await wire.closed()
            await self.closed_by_the_site()

        self.addCleanup(lambda: Deferred.fromCoroutine(close()))
        return wire

    async def closed_by_the_site(self) -> None:
        """Wait until the server's side is closed, too, and see that nothing will abort it later: that would raise."""
        while self.factory.protocols:
            await self.turn()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_blobs_arrive_whole(self) -> None:
        data = b"0123456789" * 200_000
        digest = self.registry.put(WholeBlob(data))
        wire = await self.connect_tls()
        self.assertTrue((await wire.ask("GET", f"/v2/x/blobs/{digest}")).body == data)
        self.assertEqual((await wire.ask("GET", f"/v2/x/blobs/{digest}", Range="bytes=5-9")).body, b"56789")

    async def test_a_push_arrives_whole(self) -> None:
        data = bytes(3_000_000)
        wire = await self.connect_tls()
        head = request("PATCH", UPLOADS + "known", Content_Length=str(len(data)), Authorization=OURS)
        wire.transport.write(head + data)
        self.assertEqual((await wire.response()).status, 202)
        self.assertEqual(len(self.uploads.data), len(data))

    async def test_a_refusal_arrives_though_the_client_is_still_sending(self) -> None:
        wire = await self.connect_tls()
        wire.transport.write(request("PATCH", UPLOADS + "known", Content_Length="50000000") + bytes(1_000_000))
        answer = await wire.response()
        self.assertEqual((answer.status, answer.headers["connection"]), (401, "close"))
        self.assertIn(b"UNAUTHORIZED", answer.body)
        # TLS was closed as it should be, or it might look cut off (RFC 8446, 6.1).
        (await wire.closed()).trap(ConnectionDone)
        await self.closed_by_the_site()

    async def test_an_idle_connection_is_closed_when_k3dreg_stops(self) -> None:
        wire = await self.connect_tls()
        self.assertEqual((await wire.ask("GET", "/v2/", Authorization=OURS)).status, 200)
        await self.site.connections.shutdown()
        (await wire.closed()).trap(ConnectionDone)
        await self.closed_by_the_site()

    async def test_a_reader_that_stops_holds_up_what_is_sent(self) -> None:
        blob = PacedBlob(bytes(10_000_000))
        digest = self.registry.put(blob)
        wire = await self.connect_tls()
        wire.transport.write(request("GET", f"/v2/x/blobs/{digest}"))
        await wire.head()
        wire.transport.pauseProducing()
        blob.arrive(9_000_000)
        while not blob.paused:
            await self.turn()
        wire.transport.resumeProducing()
        while blob.paused:
            await self.turn()
        blob.arrive(1_000_000)
        await wire.until(lambda: len(wire.received) == 10_000_000)

    async def test_a_reader_that_leaves_ends_the_sending(self) -> None:
        digest = self.registry.put(EndlessBlob(self.clock))
        wire = await self.connect_tls()
        wire.transport.write(request("GET", f"/v2/x/blobs/{digest}"))
        await wire.until(lambda: len(wire.received) > 1_000_000)
        wire.transport.abortConnection()
        [line] = await self.logged()
        self.assertIn(" 499", line)

    async def test_plain_http_is_told_that_this_is_https(self) -> None:
        wire = await self.connect(self.port)
        answer = await wire.ask("GET", "/v2/")
        self.assertEqual((answer.status, answer.body), (400, b"This port speaks HTTPS, not HTTP.\n"))
        await wire.closed()
        # Nothing of it has been taken for a request.
        self.assertEqual(self.lines, [])

    async def test_a_client_that_breaks_off_its_handshake_is_forgotten(self) -> None:
        wire = await self.connect(self.port)
        wire.transport.write(b"\x16\x03\x01")
        wire.transport.loseConnection()
        await wire.closed()
        self.assertEqual((await (await self.connect_tls()).ask("GET", "/healthz")).status, 404)
        self.flushLoggedErrors()
