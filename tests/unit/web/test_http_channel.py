"""The ways in which an answer ends other than well, and connections that are no good."""

from __future__ import annotations

import socket
import ssl

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import Request

from k3dreg.oci.errors import ContentGone, DigestMismatch
from k3dreg.oci.media_types import OCI_INDEX
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.content import IBlob
from k3dreg.streaming.push_producer import STALL, ConsumerGone
from k3dreg.web.responder import CLOSE_SECONDS
from k3dreg.web.site import IDLE_SECONDS, RegistrySite, make_site
from tests.fakes.registry import EndlessBlob, FakeRegistry, GivingUpBlob, PacedBlob, ShortBlob, WholeBlob
from tests.fakes.wire import Wire, WireTestCase, request

DATA = b"0123456789" * 1000
NGINX = "/v2/library/nginx/manifests/1.27?ns=docker.io"


class EndsCase(WireTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.registry = FakeRegistry()
        self.registry.tag("docker.io/library/nginx:1.27", OCI_INDEX, WholeBlob(b"{}"))
        self.clock = Clock()
        self.port = self.listen(make_site(self.registry, self.clock))

    async def asked(self, blob: IBlob) -> Wire:
        """A connection on which the head of the blob's answer has come."""
        wire = await self.connect(self.port)
        wire.transport.write(request("GET", f"/v2/x/blobs/{self.registry.put(blob)}"))
        await wire.head()
        return wire

    async def fill(self, blob: PacedBlob) -> None:
        """Let bytes arrive until neither the transport nor the kernel takes any more."""
        turns_paused = 0
        while turns_paused < 5:
            if not blob.paused:
                blob.arrive(65536)
            await self.turn()
            turns_paused = turns_paused + 1 if blob.paused else 0

    async def arrived(self) -> None:
        """Wait until what was written has been read by the site: by then another connection is served too."""
        other = await self.connect(self.port)
        self.assertEqual((await other.ask("GET", "/v2/")).status, 200)
        other.transport.abortConnection()
        await other.closed()


class BrokenBodyTests(EndsCase):
    async def test_a_body_that_breaks_ends_the_connection_so_that_a_node_can_ask_for_the_rest(self) -> None:
        blob = PacedBlob(DATA)
        wire = await self.asked(blob)
        blob.arrive(100)
        await wire.until(lambda: wire.received == DATA[:100])
        self.clock.advance(2.5)
        blob.fail(ContentGone("the export broke off"))
        self.assertTrue((await wire.closed()).check(ConnectionDone))
        self.assertEqual(wire.received, DATA[:100])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        [line] = await self.logged()
        self.assertTrue(line.startswith("warn "), line)
        self.assertIn("200, aborted after 100 bytes, 2.500s: the export broke off", line)

    async def test_what_was_written_of_a_broken_body_has_its_time_and_no_more(self) -> None:
        blob = PacedBlob(bytes(16 * 1024 * 1024))
        wire = await self.asked(blob)
        wire.transport.pauseProducing()
        await self.fill(blob)
        blob.fail(ContentGone("the export broke off"))
        self.clock.advance(CLOSE_SECONDS - 1)
        await self.turn()
        self.clock.advance(1)
        wire.transport.resumeProducing()
        self.assertFalse((await wire.closed()).check(ConnectionDone))

    async def test_a_body_that_breaks_before_its_first_byte_is_not_ended_either(self) -> None:
        blob = PacedBlob(DATA)
        wire = await self.asked(blob)
        blob.fail(ContentGone("the export broke off"))
        await wire.closed()
        self.assertEqual(wire.received, b"")
        self.assertIn("aborted after 0 bytes", (await self.logged())[0])

    async def test_a_body_of_wrong_bytes_is_not_one_to_ask_the_rest_of(self) -> None:
        blob = PacedBlob(DATA)
        wire = await self.asked(blob)
        blob.arrive(100)
        blob.fail(DigestMismatch("the layer is damaged"))
        self.assertFalse((await wire.closed()).check(ConnectionDone))
        self.assertIn("aborted after 100 bytes, 0.000s: the layer is damaged", (await self.logged())[0])

    async def test_a_sending_that_is_cancelled_from_within_ends_the_connection_too(self) -> None:
        blob = PacedBlob(DATA)
        wire = await self.asked(blob)
        blob.fail(CancelledError())
        await wire.closed()
        self.assertIn("aborted after 0 bytes, 0.000s: the sending was cancelled", (await self.logged())[0])

    async def test_a_body_that_ends_short_is_a_fault_and_never_ended_cleanly(self) -> None:
        wire = await self.connect(self.port)
        wire.transport.write(request("GET", f"/v2/x/blobs/{self.registry.put(ShortBlob(DATA))}"))
        self.assertFalse((await wire.closed()).check(ConnectionDone))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertIn(f"aborted after {len(DATA) - 1} bytes", (await self.logged(2))[1])

    async def test_a_fault_in_the_middle_is_logged_with_its_traceback_once(self) -> None:
        blob = PacedBlob(DATA)
        wire = await self.asked(blob)
        blob.fail(ZeroDivisionError())
        await wire.closed()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_a_page_that_fails_in_the_middle_of_its_answer_ends_the_connection(self) -> None:
        class Failing(Resource):
            isLeaf = True  # noqa: N815  (Twisted names it)

            def render(self, request: Request) -> int:
                request.responseHeaders.setRawHeaders("Content-Length", ["2"])
                request.write(b"x")
                raise ZeroDivisionError

        wire = await self.connect(self.listen(RegistrySite(Failing(), reactor=self.clock)))
        wire.transport.write(request("GET", "/"))
        self.assertFalse((await wire.closed()).check(ConnectionDone))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ClientGoneTests(EndsCase):
    async def test_a_client_that_leaves_in_the_middle_cancels_the_sending(self) -> None:
        blob = PacedBlob(DATA)
        wire = await self.asked(blob)
        blob.arrive(100)
        await wire.until(lambda: len(wire.received) == 100)
        wire.transport.loseConnection()
        [line] = await self.logged()
        self.assertTrue(blob.stopped)
        self.assertTrue(blob.cancelled)
        self.assertRegex(line, "^info .* 499, 100 bytes, .*: the client disconnected in the middle")

    async def test_a_client_that_leaves_with_the_last_byte_has_had_its_answer(self) -> None:
        blob = PacedBlob(DATA)
        wire = await self.asked(blob)
        assert blob.consumer is not None
        blob.consumer.write(DATA)  # and `send` has not returned yet
        await wire.until(lambda: len(wire.received) == len(DATA))
        wire.transport.loseConnection()
        self.assertRegex((await self.logged())[0], f"^info .* 200, {len(DATA)} bytes, .*: .*at the end")

    async def test_a_blob_that_gives_up_by_itself_makes_the_same_one_line(self) -> None:
        blob = GivingUpBlob(DATA)
        wire = await self.asked(blob)
        wire.transport.abortConnection()
        self.assertRegex((await self.logged())[0], " 499, 0 bytes, .*: the client disconnected in the middle")
        await wire.closed()
        self.assertEqual(len(self.lines), 1)

    async def test_a_consumer_that_is_called_gone_is_gone(self) -> None:
        blob = PacedBlob(DATA)
        wire = await self.asked(blob)
        blob.fail(ConsumerGone("the connection was lost"))
        await wire.closed()
        self.assertRegex((await self.logged())[0], "^info .* 499, 0 bytes, .*: the client disconnected in the middle")

    async def test_a_client_that_leaves_before_the_answer_cancels_the_work(self) -> None:
        cancelled: list[object] = []
        asked: Deferred[None] = Deferred()

        async def wait(trace: Trace) -> None:
            never: Deferred[None] = Deferred(cancelled.append)
            asked.callback(None)
            await never

        self.registry.before = wait
        wire = await self.connect(self.port)
        wire.transport.write(request("HEAD", NGINX))
        await asked
        wire.transport.abortConnection()
        [line] = await self.logged()
        self.assertEqual(len(cancelled), 1)
        self.assertIn("HEAD docker.io/library/nginx:1.27 499, 0 bytes", line)

    async def test_work_that_is_cancelled_from_within_is_503_to_a_client_that_is_there(self) -> None:
        async def give_up(trace: Trace) -> None:
            cancelled: Deferred[None] = Deferred()
            cancelled.cancel()
            await cancelled

        self.registry.before = give_up
        wire = await self.connect(self.port)
        self.assertEqual((await wire.ask("GET", NGINX)).status, 503)

    async def test_a_client_that_does_not_read_pauses_the_blob(self) -> None:
        blob = PacedBlob(bytes(16 * 1024 * 1024))
        wire = await self.asked(blob)
        wire.transport.pauseProducing()
        await self.fill(blob)
        self.assertLess(blob.written, blob.size, "everything was written to a client that does not read")

    async def test_a_client_that_never_reads_again_is_given_up(self) -> None:
        wire = await self.asked(EndlessBlob(self.clock))
        wire.transport.pauseProducing()
        while not self.clock.getDelayedCalls():
            await self.turn()
        self.clock.advance(STALL)
        [line] = await self.logged()
        self.assertRegex(
            line,
            r"^warn .* 200, aborted after \d{5,8} bytes, 300.000s: the client accepted no bytes for 300 s \[\w{16}\]$",
        )
        wire.transport.resumeProducing()
        self.assertFalse((await wire.closed()).check(ConnectionDone))


class NotHttpTests(EndsCase):
    async def test_a_client_hello_is_answered_and_closed_at_once(self) -> None:
        wire = await self.connect(self.port)
        wire.transport.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        await wire.closed()
        self.assertTrue(wire.received.startswith(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"))
        self.assertTrue(wire.received.endswith(b"\r\n\r\nThis port speaks HTTP, not HTTPS.\n"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_a_real_tls_client_fails_at_once(self) -> None:
        def attempt() -> str:
            context = ssl.create_default_context()
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as plain:
                try:
                    context.wrap_socket(plain, server_hostname="localhost")
                except ssl.SSLError as error:
                    return str(error.reason)
            return "a handshake"

        self.assertEqual(await deferToThread(attempt), "WRONG_VERSION_NUMBER")

    async def test_only_the_first_byte_of_a_connection_counts(self) -> None:
        wire = await self.connect(self.port)
        self.assertEqual((await wire.ask("GET", "/v2/")).status, 200)
        wire.transport.write(request("PUT", NGINX, Content_Length="3"))
        await self.arrived()
        wire.transport.write(b"\x16\x03\x01")
        self.assertEqual((await wire.response()).status, 405)
        self.assertEqual((await wire.ask("GET", "/v2/")).status, 200)

    async def test_a_head_without_end_is_turned_away(self) -> None:
        wire = await self.connect(self.port)
        wire.transport.write(b"GET /v2/ HTTP/1.1\r\n" + b"X: y\r\n" * 5000)
        await wire.closed()
        self.assertTrue(wire.received.startswith(b"HTTP/1.1 400 Bad Request\r\n"))


class TimeoutTests(EndsCase):
    async def test_a_connection_is_kept_for_longer_than_any_node_keeps_it(self) -> None:
        wire = await self.connect(self.port)
        await wire.ask("GET", "/v2/")
        self.clock.advance(IDLE_SECONDS - 1)
        self.assertEqual((await wire.ask("GET", "/v2/")).status, 200)
        self.assertGreater(IDLE_SECONDS, 60)
        self.clock.advance(IDLE_SECONDS)
        await wire.closed()

    async def test_a_request_that_never_ends_is_not_waited_for_however_busy_it_looks(self) -> None:
        wire = await self.connect(self.port)
        for piece in (b"GE", b"T /v2/ HTTP/1.1\r\n", b"Host: x\r\n"):
            wire.transport.write(piece)
            await self.arrived()
            self.clock.advance(IDLE_SECONDS / 2 - 1)
        self.clock.advance(3)
        await wire.closed()
        self.assertEqual(wire.received, b"")

    async def test_the_answer_may_take_longer_than_that(self) -> None:
        blob = PacedBlob(DATA)
        wire = await self.asked(blob)
        self.clock.advance(IDLE_SECONDS * 10)
        blob.arrive(len(DATA))
        await wire.until(lambda: wire.received == DATA)

    async def test_a_second_request_has_the_whole_time_again(self) -> None:
        wire = await self.connect(self.port)
        for _ in range(3):
            self.clock.advance(IDLE_SECONDS - 1)
            wire.transport.write(b"GET /v2/")
            await self.arrived()
            self.clock.advance(IDLE_SECONDS - 1)
            wire.transport.write(b" HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertEqual((await wire.response()).status, 200)

    async def test_a_body_that_keeps_coming_is_waited_for(self) -> None:
        wire = await self.connect(self.port)
        wire.transport.write(request("PUT", NGINX, Content_Length="4"))
        for _ in range(4):
            await self.arrived()
            self.clock.advance(IDLE_SECONDS - 1)
            wire.transport.write(b"x")
        self.assertEqual((await wire.response()).status, 405)
