"""Bodies of requests on the wire: read as they are wanted, refused before they are sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from k3dreg.formats.upload_session import ContentRange
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import DigestNotMatched, UploadUnknown
from k3dreg.oci.reference import Repository, Tag
from k3dreg.registry.use_cases import Pushed, UploadStatus
from k3dreg.reporting.trace import Trace
from k3dreg.streaming.byte_stream import BATCH, MOST_UNREAD
from k3dreg.streaming.content import IByteStream
from k3dreg.web.http_channel import LINGER
from k3dreg.web.request_body import MOST_HELD, RequestBody
from k3dreg.web.site import IDLE_SECONDS, make_site
from tests.fakes.registry import FakeRegistry
from tests.fakes.wire import Wire, WireTestCase, request

UPLOADS = "/v2/app/blobs/uploads/"
SESSION = UPLOADS + "known"
MIB = 1 << 20


class FakeUploads:
    """One session, "known", whose bytes are counted; `gate` is waited for before each read."""

    deleting = True

    def __init__(self) -> None:
        self.data = bytearray()
        self.gate: Callable[[], Deferred[None]] | None = None
        self.bodies: list[Any] = []
        self.cancelled = False
        self.manifests: list[tuple[bytes, str]] = []

    def open(self, repository: Repository, algorithm: str = "sha256") -> UploadStatus:
        return UploadStatus(repository, "known", 0)

    def status(self, repository: Repository, session: str) -> UploadStatus:
        if session != "known":
            raise UploadUnknown("no such session")
        return UploadStatus(repository, session, len(self.data))

    def cancel(self, repository: Repository, session: str) -> None:
        self.cancelled = True

    async def append(
        self,
        repository: Repository,
        session: str,
        body: IByteStream,
        content_range: ContentRange | None,
        length: int | None,
    ) -> UploadStatus:
        self.status(repository, session)
        self.bodies.append(body)
        while True:
            if self.gate is not None:
                await self.gate()
            if not (data := await body.read()):
                return self.status(repository, session)
            self.data += data

    async def commit(
        self,
        repository: Repository,
        session: str,
        digest: Digest,
        body: IByteStream,
        content_range: ContentRange | None,
        length: int | None,
    ) -> None:
        await self.append(repository, session, body, content_range, length)
        if Digest.of(bytes(self.data)) != digest:
            raise DigestNotMatched("it does not match")

    async def mount(self, repository: Repository, digest: Digest, trace: Trace) -> bool:
        return False

    async def push_manifest(
        self, repository: Repository, data: bytes, media_type: str, digest: Digest | None, tags: Any, trace: Trace
    ) -> Pushed:
        self.manifests.append((data, media_type))
        return Pushed(Digest.of(data), None, tuple(tags))

    async def delete_tag(self, repository: Repository, tag: Tag, *, with_manifests: bool = False) -> None:
        raise NotImplementedError

    async def delete_manifest(self, repository: Repository, digest: Digest) -> None:
        raise NotImplementedError

    async def delete_blob(self, repository: Repository, digest: Digest) -> None:
        raise NotImplementedError


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


class PushCase(WireTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.uploads = FakeUploads()
        self.port = self.listen(make_site(FakeRegistry(), self.clock, uploads=self.uploads))

    async def wire(self) -> Wire:
        return await self.connect(self.port)

    def held(self) -> tuple[Callable[[], Deferred[None]], Callable[[], None]]:
        """A gate, and the key to it."""
        waiting: list[Deferred[None]] = []
        is_open = False

        def gate() -> Deferred[None]:
            passed: Deferred[None] = Deferred()
            waiting.append(passed)
            if is_open:
                unlock()
            return passed

        def unlock() -> None:
            nonlocal is_open
            is_open = True
            for passed in waiting:
                if not passed.called:
                    passed.callback(None)

        return gate, unlock

    async def still(self, value: Callable[[], int]) -> int:
        """`value`, once it has not changed for a while of turns."""
        last, same = value(), 0
        while same < 50:
            await self.turn()
            last, same = (last, same + 1) if value() == last else (value(), 0)
        return last


class BodiesTests(PushCase):
    async def test_sized_and_chunked_bodies_on_one_connection(self) -> None:
        wire = await self.wire()
        data = bytes(range(256)) * 10_000
        wire.transport.write(request("PATCH", SESSION, Content_Length=str(len(data))) + data)
        answer = await wire.response()
        self.assertEqual((answer.status, answer.headers["range"]), (202, f"0-{len(data) - 1}"))
        wire.transport.write(request("PATCH", SESSION, Transfer_Encoding="chunked") + chunked(b"abc", b"d" * 100_000))
        self.assertEqual((await wire.response()).headers["range"], f"0-{len(data) + 100_002}")
        whole = data + b"abc" + b"d" * 100_000
        self.assertEqual(self.uploads.data, whole)
        put = f"{SESSION}?digest={Digest.of(whole)}"
        self.assertEqual((await wire.ask("PUT", put, Content_Length="0")).status, 201)

    async def test_requests_that_were_sent_ahead_are_answered_in_order(self) -> None:
        wire = await self.wire()
        patch = request("PATCH", SESSION, Content_Length="3")
        wire.transport.write((patch + b"abc" + patch + b"def" + request("GET", "/v2/")) * 3)
        for number in range(3):
            self.assertEqual((await wire.response()).headers["range"], f"0-{number * 6 + 2}")
            self.assertEqual((await wire.response()).headers["range"], f"0-{number * 6 + 5}")
            self.assertEqual((await wire.response()).status, 200)

    async def test_no_more_is_read_than_the_disk_takes(self) -> None:
        self.uploads.gate, unlock = self.held()
        wire = await self.wire()
        wire.transport.write(request("PATCH", SESSION, Content_Length=str(60 * MIB)) + bytes(60 * MIB))
        received = await self.still(lambda: self.uploads.bodies[0].received if self.uploads.bodies else 0)
        self.assertLess(received, MOST_UNREAD + MIB)
        self.clock.advance(IDLE_SECONDS * 3)  # that is not the client's silence
        unlock()
        self.assertEqual((await wire.response()).headers["range"], f"0-{60 * MIB - 1}")

    async def test_a_client_that_goes_silent_in_the_middle_is_cut_off(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("PATCH", SESSION, Content_Length="10") + b"abc")
        await self.still(lambda: len(self.uploads.data))
        self.clock.advance(IDLE_SECONDS - 1)
        wire.transport.write(b"d")
        await self.still(lambda: len(self.uploads.data))
        self.clock.advance(IDLE_SECONDS - 1)
        self.assertIsNone(wire.lost)
        self.clock.advance(1)
        await wire.closed()
        self.assertEqual(self.uploads.data, b"abcd")
        lines = await self.logged()
        self.assertTrue(any("PATCH app upload 499" in line for line in lines), lines)

    async def test_a_client_that_leaves_in_the_middle_is_noticed(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("PATCH", SESSION, Content_Length="10") + b"abc")
        await self.still(lambda: len(self.uploads.data))
        wire.transport.abortConnection()
        (line,) = await self.logged()
        self.assertIn("PATCH app upload 499", line)

    async def test_a_whole_blob_whose_client_leaves_leaves_no_session(self) -> None:
        wire = await self.wire()
        path = f"{UPLOADS}?digest={Digest.of(b'x')}"
        wire.transport.write(request("POST", path, Content_Length="10") + b"abc")
        await self.still(lambda: len(self.uploads.data))
        wire.transport.abortConnection()
        await self.logged()
        self.assertTrue(self.uploads.cancelled)

    async def test_a_session_is_deleted(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("DELETE", SESSION))
        self.assertEqual((await wire.response()).status, 204)
        self.assertTrue(self.uploads.cancelled)

    async def test_forms_are_bodies_like_others(self) -> None:
        wire = await self.wire()
        form = {"Content_Type": "application/x-www-form-urlencoded", "Content_Length": "7"}
        wire.transport.write(request("PATCH", SESSION, **form) + b"a=b&c=d")
        self.assertEqual((await wire.response()).status, 202)
        self.assertEqual(self.uploads.data, b"a=b&c=d")

    async def test_broken_chunks_are_400_and_the_end(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("PATCH", SESSION, Transfer_Encoding="chunked") + b"3\r\nabc\r\nzz\r\n")
        answer = await wire.response()
        self.assertEqual((answer.status, answer.headers["connection"]), (400, "close"))
        self.assertIn("a chunk does not begin with its size", json.loads(answer.body)["errors"][0]["message"])
        await wire.closed()
        self.assertEqual(self.uploads.data, b"abc")


class RefusalTests(PushCase):
    async def test_a_large_body_nobody_wants_need_not_be_sent(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("PATCH", UPLOADS + "other", Content_Length=str(1 << 40)) + b"a beginning")
        answer = await wire.response()
        self.assertEqual((answer.status, answer.headers["connection"]), (404, "close"))
        self.assertEqual(json.loads(answer.body)["errors"][0]["code"], "BLOB_UPLOAD_UNKNOWN")
        await wire.closed()  # at once, and not after LINGER

    async def test_nor_is_it_read_when_it_came_with_the_head(self) -> None:
        wire = await self.wire()
        body = bytes(2 * MIB)
        wire.transport.write(request("PATCH", UPLOADS + "other", Content_Length=str(len(body))) + body)
        self.assertEqual((await wire.response()).status, 404)
        wire = await self.wire()
        wire.transport.write(
            request("PATCH", UPLOADS + "other", Content_Length="3", Expect="100-continue") + b"abc" + b"GET / HTTP/1.1"
        )
        self.assertEqual((await wire.response()).status, 404)
        await wire.closed()

    async def test_a_client_that_sends_on_gets_its_answer_all_the_same(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("PATCH", UPLOADS + "other", Transfer_Encoding="chunked"))
        for _ in range(40):
            wire.transport.write(b"100000\r\n" + bytes(MIB) + b"\r\n")
        self.assertEqual((await wire.response()).status, 404)

    async def test_a_client_that_sends_on_forever_is_cut_off(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("PATCH", UPLOADS + "other", Content_Length=str(1 << 40)))
        await wire.response()
        wire.transport.write(bytes(MIB))
        await self.turn()
        self.clock.advance(LINGER)
        await wire.closed()

    async def test_after_a_small_body_nobody_wants_the_connection_lives_on(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("PATCH", UPLOADS + "other", Content_Length="1000"))
        self.assertEqual((await wire.response()).status, 404)
        wire.transport.write(bytes(1000) + request("GET", "/v2/"))
        answer = await wire.response()
        self.assertEqual((answer.status, answer.body), (200, b"{}"))

    async def test_a_client_that_asks_first_is_answered_first(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("PATCH", SESSION, Content_Length="3", Expect="100-continue"))
        self.assertEqual((await wire.response()).status, 100)
        wire.transport.write(b"abc")
        self.assertEqual((await wire.response()).status, 202)
        wire.transport.write(request("PATCH", UPLOADS + "other", Content_Length="3", Expect="100-continue"))
        answer = await wire.response()
        self.assertEqual((answer.status, answer.headers["connection"]), (404, "close"))
        await wire.closed()

    async def test_nobody_is_told_to_go_on_before_the_body_is_wanted(self) -> None:
        self.uploads.gate, unlock = self.held()
        wire = await self.wire()
        wire.transport.write(request("PATCH", SESSION, Content_Length="3", Expect="100-continue"))
        await self.still(lambda: len(wire.received))
        self.assertEqual(wire.received, b"")
        unlock()
        self.assertEqual((await wire.response()).status, 100)

    async def test_all_manifests_that_are_being_sent_have_a_largest_size_together(self) -> None:
        head = request("PUT", "/v2/app/manifests/t", Content_Length=str(4 * MIB))
        slow = []
        for _ in range(MOST_HELD // (4 * MIB) + 1):
            wire = await self.connect(self.port)
            wire.transport.write(head + bytes(4 * MIB - 1))
            slow.append(wire)
        while not (refused := [wire for wire in slow if wire.received]):
            await self.turn()
        answer = await refused[0].response()
        self.assertEqual((answer.status, answer.headers["retry-after"]), (503, "1"))
        # Manifests as they are take no part in it.
        small = await self.connect(self.port)
        small.transport.write(request("PUT", "/v2/app/manifests/t", Content_Length="10000") + bytes(10000))
        self.assertEqual((await small.response()).status, 201)
        # And the room comes back, whichever way a request ends.
        slow.remove(refused[0])
        slow[0].transport.abortConnection()
        slow[1].transport.write(b"x")
        self.assertEqual((await slow[1].response()).status, 201)
        await self.logged(4)
        for _ in range(2):
            wire = await self.connect(self.port)
            wire.transport.write(head + bytes(4 * MIB))
            self.assertEqual((await wire.response()).status, 201)

    async def test_a_manifest_has_a_largest_size(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("PUT", "/v2/app/manifests/t", Content_Length=str(4 * MIB + 1)))
        self.assertEqual((await wire.response()).status, 413)
        wire = await self.wire()
        wire.transport.write(request("PUT", "/v2/app/manifests/t", Transfer_Encoding="chunked"))
        wire.transport.write(chunked(*[bytes(MIB)] * 5))
        self.assertEqual((await wire.response()).status, 413)
        wire = await self.wire()
        wire.transport.write(
            request("PUT", "/v2/app/manifests/t", Content_Length=str(4 * MIB), Content_Type="a/b; charset=x")
            + bytes(4 * MIB)
        )
        self.assertEqual((await wire.response()).status, 201)
        self.assertEqual(self.uploads.manifests, [(bytes(4 * MIB), "a/b")])

    async def test_what_is_wrong_with_the_path_is_said_without_the_body(self) -> None:
        for path in (
            "/v2/app/blobs/uploads/../../x",
            f"{SESSION}",
            f"{SESSION}?digest=md5:00",
            "/v2/UPPER/blobs/uploads/",
        ):
            wire = await self.wire()
            wire.transport.write(request("PUT", path, Content_Length=str(1 << 40)))
            self.assertIn((await wire.response()).status, (400, 404, 405))


class BodyTests(WireTestCase):
    """The body alone."""

    async def test_it_stops_and_starts_the_connection_around_what_is_unread(self) -> None:
        flow: list[bool] = []
        body = RequestBody(None, flow.append, lambda: None)
        body.write(b"x")
        self.assertEqual(len(await body.read()), 1)
        body.write(bytes(MOST_UNREAD - 1))
        self.assertEqual(flow, [])
        body.write(b"x")
        self.assertEqual(flow, [False])
        self.assertEqual(len(await body.read()), MOST_UNREAD)
        self.assertEqual(flow, [False, True])
        body.write(b"x")
        body.end()
        self.assertEqual([await body.read(), await body.read()], [b"x", b""])

    async def test_little_is_taken_before_the_first_byte_is_wanted(self) -> None:
        flow: list[bool] = []
        body = RequestBody(None, flow.append, lambda: None)
        for _ in range(2):
            body.write(bytes(50_000))
        self.assertEqual(flow, [False])
        self.assertEqual(len(await body.read()), 100_000)
        self.assertEqual(flow, [False, True])

    async def test_small_pieces_are_joined_and_large_ones_are_not(self) -> None:
        body = RequestBody(None, lambda on: None, lambda: None)
        for size in (10, 20, BATCH, BATCH, 5):
            body.write(bytes(size))
        self.assertEqual([len(await body.read()) for _ in range(2)], [BATCH + 30, BATCH])

    async def test_what_is_not_wanted_any_more_is_counted_and_dropped(self) -> None:
        flow: list[bool] = []
        body = RequestBody(None, flow.append, lambda: None)
        for _ in range(3):
            body.write(bytes(MIB))
        body.close()
        body.write(bytes(MIB))
        self.assertEqual((flow, body.received), ([False, True], 4 * MIB))
