"""Files that the kernel sends by itself: over real sockets, to clients of every kind."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any, cast

from OpenSSL.crypto import FILETYPE_PEM, load_certificate, load_privatekey
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import SSL4ClientEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IConsumer
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock, deferLater
from twisted.protocols.tls import TLSMemoryBIOFactory

from k3dreg.engine_files.local_files import LocalBlob
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import StoreFull
from k3dreg.streaming.arriving_blob import ArrivingBlob
from k3dreg.streaming.file_handles import FileHandle, Handle
from k3dreg.streaming.file_producer import CHUNK, Sender
from k3dreg.streaming.push_producer import STALL
from k3dreg.streaming.sendfile import SocketSender
from k3dreg.streaming.workers import Workers
from k3dreg.web.site import make_site
from tests.fakes.certificates import Authority
from tests.fakes.registry import FakeRegistry, WholeBlob
from tests.fakes.wire import Wire, WireTestCase, request

reactor = cast(Any, _reactor)

# More than the kernel takes of a connection whose client reads nothing.
SIZE = 9_000_001


class Watched(FileHandle):
    """Counts the bytes that were read from it, and those that the kernel sent by itself."""

    def __init__(self, path: str, refusal: OSError | None = None, counts: Watched | None = None) -> None:
        super().__init__(path)
        self.was_read = 0
        self.was_sent = 0
        self._refusal = refusal
        self._counts = counts or self

    def again(self) -> Watched:
        """Another handle of the same file, whose bytes count here."""
        return Watched(self._path, self._refusal, self)

    def read(self, offset: int, length: int) -> bytes:
        data = super().read(offset, length)
        self._counts.was_read += len(data)
        return data

    def send(self, socket: Handle, offset: int, length: int) -> int:
        if self._refusal is not None:
            raise self._refusal
        sent = super().send(socket, offset, length)
        self._counts.was_sent += sent
        return sent


class SocketCase(WireTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = self.mktemp()
        self.data = os.urandom(SIZE)
        Path(self.path).write_bytes(self.data)
        self.clock = Clock()
        self.workers = Workers(reactor)
        # The time in which a client may stall is the test's.
        self.workers.clock = self.clock
        self.workers.start()
        self.addCleanup(self.workers.stop)
        self.registry = FakeRegistry()
        self.site = make_site(self.registry, reactor)
        self.port = self.listen(self.site)
        self.handle = Watched(self.path)

    def blob(self, refusal: OSError | None = None) -> str:
        """The file is a blob of the registry's: its path there."""
        self.handle = Watched(self.path, refusal)
        digest = Digest.of(self.data)
        return f"/v2/x/blobs/{self.registry.put(LocalBlob(self.workers, self.handle.again, digest, SIZE))}"

    async def lazy(self) -> Wire:
        """A client that reads nothing until it is resumed."""
        wire = await self.connect(self.port)
        wire.transport.pauseProducing()
        return wire

    async def stuck(self) -> None:
        """Wait until the client's connection is full."""
        turns, sent = 0, 0
        while turns < 5 or not self.handle.was_sent:
            await self.turn()
            waits = bool(self.clock.getDelayedCalls()) and self.handle.was_sent == sent
            turns, sent = turns + 1 if waits else 0, self.handle.was_sent

    async def sent(self, size: int) -> None:
        """Check the number of bytes that were sent, which a worker counts after the client may have them."""
        for _ in range(1000):
            if self.handle.was_sent >= size:
                break
            await self.turn()
        self.assertEqual(self.handle.was_sent, size)


class WholeTests(SocketCase):
    async def test_a_file_reaches_its_client_without_being_read(self) -> None:
        wire = await self.connect(self.port)
        answer = await wire.ask("GET", self.blob())
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.body == self.data)
        await self.sent(SIZE)
        self.assertEqual(self.handle.was_read, 0)
        self.assertIn(f" 200, {SIZE} bytes", (await self.logged())[0])

    async def test_a_range_is_that_range(self) -> None:
        wire = await self.connect(self.port)
        answer = await wire.ask("GET", self.blob(), Range="bytes=2000001-8345677")
        self.assertEqual(answer.status, 206)
        self.assertTrue(answer.body == self.data[2_000_001:8_345_678])
        await self.sent(len(answer.body))

    async def test_what_is_no_more_than_a_chunk_is_read(self) -> None:
        wire = await self.connect(self.port)
        answer = await wire.ask("GET", self.blob(), Range="bytes=0-9999")
        self.assertTrue(answer.body == self.data[:10_000])
        self.assertEqual((self.handle.was_read, self.handle.was_sent), (10_000, 0))

    async def test_a_connection_serves_one_after_the_other(self) -> None:
        wire = await self.connect(self.port)
        path = self.blob()
        for _ in range(2):
            self.assertTrue((await wire.ask("GET", path)).body == self.data)
        self.assertEqual((await wire.ask("GET", "/v2/")).body, b"{}")
        await self.sent(2 * SIZE)

    async def test_what_was_written_before_comes_before_however_much_it_is(self) -> None:
        before = WholeBlob(os.urandom(SIZE))
        wire = await self.lazy()
        path = self.blob()
        wire.transport.write(request("GET", f"/v2/x/blobs/{self.registry.put(before)}") + request("GET", path))
        # The first answer is written, as far as the transport is concerned, and the second waits for it.
        while not self.clock.getDelayedCalls():
            await self.turn()
        self.assertEqual(self.handle.was_sent, 0)
        wire.transport.resumeProducing()
        self.assertTrue((await wire.response()).body == before.data)
        self.assertTrue((await wire.response()).body == self.data)
        await self.sent(SIZE)

    async def test_eight_clients_at_once_get_every_byte(self) -> None:
        path = self.blob()
        wires = [await self.connect(self.port) for _ in range(8)]
        for wire in wires:
            wire.transport.write(request("GET", path))
        for wire in wires:
            self.assertTrue((await wire.response()).body == self.data)
        await self.sent(8 * SIZE)

    async def test_over_a_unix_socket_it_is_the_same(self) -> None:
        path = self.mktemp()
        port = reactor.listenUNIX(path, self.site)
        self.addCleanup(port.stopListening)
        wire = await connectProtocol(UNIXClientEndpoint(reactor, path), Wire())
        self.assertTrue((await wire.ask("GET", self.blob())).body == self.data)
        await self.sent(SIZE)
        wire.transport.loseConnection()
        await wire.closed()

    async def test_a_file_that_the_kernel_cannot_send_so_is_read(self) -> None:
        wire = await self.connect(self.port)
        answer = await wire.ask("GET", self.blob(OSError(errno.EINVAL, "no such operation")))
        self.assertTrue(answer.body == self.data)
        self.assertEqual((self.handle.was_read, self.handle.was_sent), (SIZE, 0))


class Switched(Exception):
    """The rest comes in another way."""


class InTwoWays(LocalBlob):
    """Sent straight until the client takes no more, and in another way then."""

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        paused, handle = False, self._open_file()

        class Straight(Sender):
            def pauseProducing(self) -> None:
                nonlocal paused
                paused = True
                super().pauseProducing()

        def read(offset: int, limit: int) -> Deferred[bytes]:
            nonlocal start
            start = offset
            return fail(Switched()) if paused else succeed(handle.read(offset, min(limit, CHUNK)))

        with contextlib.suppress(Switched):
            await Straight(consumer, self._workers.clock).run(read, start, stop)
        handle.close()
        await super().send(consumer, start, stop)


class TlsTests(SocketCase):
    async def encrypted(self) -> Wire:
        """A client that speaks TLS."""
        authority = Authority()
        pair = authority.sign("localhost")
        options = CertificateOptions(
            load_privatekey(FILETYPE_PEM, pair.key), load_certificate(FILETYPE_PEM, pair.certificate)
        )
        port = self.listen(cast(Any, TLSMemoryBIOFactory(options, False, self.site)))
        # Whom it talks to is not this test's business.
        endpoint = SSL4ClientEndpoint(reactor, "127.0.0.1", port, CertificateOptions())
        wire: Wire = await connectProtocol(endpoint, Wire())
        self.close_in_the_end(wire)
        return wire

    async def test_over_tls_the_file_is_read(self) -> None:
        wire = await self.encrypted()
        self.assertTrue((await wire.ask("GET", self.blob())).body == self.data)
        self.assertEqual((self.handle.was_read, self.handle.was_sent), (SIZE, 0))

    async def test_who_goes_on_in_another_way_goes_on_at_the_client_s_pace(self) -> None:
        blob = InTwoWays(self.workers, self.handle.again, Digest.of(self.data), SIZE)
        wire = await self.encrypted()
        await wire.ask("GET", "/v2/")  # with which the handshake is over
        wire.transport.pauseProducing()
        wire.transport.write(request("GET", f"/v2/x/blobs/{self.registry.put(blob)}"))
        read = -1
        while not 0 < self.handle.was_read == read:
            read = self.handle.was_read
            await deferLater(reactor, 0.3)
        self.assertLess(read, SIZE - 4 * CHUNK)
        wire.transport.resumeProducing()
        self.assertTrue((await wire.response()).body == self.data)
        self.assertEqual(self.handle.was_sent, 0)


class GrowingTests(SocketCase):
    """A file that is still being written to."""

    def arriving(self) -> str:
        self.growing = ArrivingBlob(self.workers, Digest.of(self.data), SIZE, self.handle)
        return f"/v2/x/blobs/{self.registry.put(self.growing)}"

    async def sent(self, size: int) -> None:
        """Wait until so much was sent, and a little longer, so that more would show."""
        while self.handle.was_sent < size:
            await self.turn()
        for _ in range(5):
            await self.turn()
        self.assertEqual(self.handle.was_sent, size)

    async def test_what_arrives_is_sent_as_it_arrives_and_the_last_byte_when_it_is_verified(self) -> None:
        wire = await self.connect(self.port)
        wire.transport.write(request("GET", self.arriving()))
        for size in (1_000_000, 1_000_001, SIZE // 2):
            self.growing.advance(size)
            await self.sent(size)
        self.growing.advance(SIZE)
        await self.sent(SIZE - 1)
        self.growing.finish(None)
        self.assertTrue((await wire.response()).body == self.data)
        self.assertEqual(self.handle.was_read, 0)

    async def test_what_fails_while_it_arrives_is_broken_off_for_those_who_wait_and_those_who_do_not_read(self) -> None:
        path = self.arriving()
        waiting, lazy = await self.connect(self.port), await self.lazy()
        for wire in (waiting, lazy):
            wire.transport.write(request("GET", path))
        self.growing.advance(SIZE - 1_000)
        await self.stuck()
        self.growing.fail(StoreFull("no room"))
        for line in await self.logged(2):
            self.assertRegex(line, "aborted after [0-9]+ bytes, .* did not arrive: no room")
        lazy.transport.resumeProducing()
        for wire in (waiting, lazy):
            await wire.closed()
            self.assertLess(len(wire.received), SIZE)


class EndsTests(SocketCase):
    async def test_a_client_that_stops_reading_holds_nobody_up_and_may_go_on(self) -> None:
        path = self.blob()
        lazy = [await self.lazy() for _ in range(20)]  # more than there are threads
        for wire in lazy:
            wire.transport.write(request("GET", path))
        await self.stuck()
        eager = await self.connect(self.port)
        self.assertTrue((await eager.ask("GET", path)).body == self.data)
        lazy[0].transport.resumeProducing()
        self.assertTrue((await lazy[0].response()).body == self.data)

    async def test_a_client_that_takes_nothing_for_five_minutes_is_given_up(self) -> None:
        wire = await self.lazy()
        wire.transport.write(request("GET", self.blob()))
        await self.stuck()
        self.clock.advance(STALL)
        self.assertRegex(
            (await self.logged())[0], "aborted after [0-9]+ bytes, .*: the client accepted no bytes for 300 s"
        )
        wire.transport.resumeProducing()
        self.assertFalse((await wire.closed()).check(ConnectionDone))
        self.assertLess(len(wire.received), SIZE)

    async def test_a_client_that_leaves_ends_its_own_sending(self) -> None:
        path = self.blob()
        wire, other = await self.lazy(), await self.connect(self.port)
        wire.transport.write(request("GET", path))
        await self.stuck()
        wire.transport.abortConnection()
        self.assertRegex(
            (await self.logged())[0], "^info .* 499, [0-9]+ bytes, .*: the client disconnected in the middle"
        )
        self.assertTrue((await other.ask("GET", path)).body == self.data)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_a_file_that_becomes_shorter_breaks_the_body_off_and_never_ends_it(self) -> None:
        wire = await self.lazy()
        wire.transport.write(request("GET", self.blob()))
        await self.stuck()
        os.truncate(self.path, SIZE - 1)
        wire.transport.resumeProducing()
        await wire.head()
        await wire.closed()
        self.assertTrue(wire.received == self.data[:-1])
        self.assertIn(f"aborted after {SIZE - 1} bytes", (await self.logged())[0])

    async def test_a_file_that_is_gone_is_an_answer_that_breaks_off(self) -> None:
        path = self.blob()
        os.unlink(self.path)
        wire = await self.connect(self.port)
        wire.transport.write(request("GET", path))
        await wire.head()
        await wire.closed()
        self.assertEqual(wire.received, b"")

    async def test_a_disk_that_fails_is_not_the_clients_fault(self) -> None:
        wire = await self.connect(self.port)
        wire.transport.write(request("GET", self.blob(OSError(errno.EIO, "the disk"))))
        await wire.head()
        await wire.closed()
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertIn("aborted after 0 bytes", (await self.logged(2))[1])


class Cancellable(LocalBlob):
    """One whose sending the test can cancel."""

    sending: Deferred[None]

    async def send(self, consumer: IConsumer, start: int, stop: int) -> None:
        self.sending = Deferred.fromCoroutine(super().send(consumer, start, stop))
        await self.sending


def file_of(descriptor: int) -> str:
    """What a descriptor is of; "" if it is closed."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        return ""


class CancellingTests(SocketCase):
    async def test_cancelling_leaves_nothing_behind(self) -> None:
        blob = Cancellable(self.workers, self.handle.again, Digest.of(self.data), SIZE)
        wire = await self.lazy()
        wire.transport.write(request("GET", f"/v2/x/blobs/{self.registry.put(blob)}"))
        await self.stuck()
        self.assertEqual([type(writer) for writer in reactor.getWriters()].count(SocketSender), 1)
        blob.sending.cancel()
        self.assertEqual([type(writer) for writer in reactor.getWriters()].count(SocketSender), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIn("the sending was cancelled", (await self.logged())[0])

    async def test_its_descriptor_is_its_own_for_as_long_as_the_reactor_may_tell_of_it(self) -> None:
        blob = Cancellable(self.workers, self.handle.again, Digest.of(self.data), SIZE)
        wire = await self.lazy()
        wire.transport.write(request("GET", f"/v2/x/blobs/{self.registry.put(blob)}"))
        await self.stuck()
        descriptor = next(each for each in reactor.getWriters() if isinstance(each, SocketSender)).fileno()
        socket, when_it_ended = file_of(descriptor), []
        blob.sending.addBoth(lambda _: when_it_ended.append(file_of(descriptor)))
        wire.transport.abortConnection()
        await self.logged()
        self.assertEqual(when_it_ended, [socket])
        await self.turn()
        self.assertNotEqual(file_of(descriptor), socket)
