"""Answers of a real site, read as bytes off a real socket."""

from __future__ import annotations

import base64
import json

from twisted.internet.defer import Deferred

from k3dreg import __version__
from k3dreg.formats.basic_auth import BasicAuth
from k3dreg.oci.digest import Digest
from k3dreg.oci.errors import AuthenticationRequired, ContentGone, NotYet
from k3dreg.oci.media_types import OCI_INDEX
from k3dreg.reporting.logger import set_level
from k3dreg.reporting.trace import Trace
from k3dreg.web.site import make_site
from tests.fakes.registry import FakeRegistry, PacedBlob, WholeBlob
from tests.fakes.wire import Response, Wire, WireTestCase, reactor, request

MANIFEST = b'{"schemaVersion": 2}'
DATA = bytes(range(256)) * 40
EVERY = {"server": f"k3dreg/{__version__}", "docker-distribution-api-version": "registry/2.0"}
NGINX = "/v2/library/nginx/manifests/1.27?ns=docker.io"
UNKNOWN = Digest.of(b"unknown")


def code_of(response: Response) -> str:
    [error] = json.loads(response.body)["errors"]
    return str(error["code"])


class AnswersCase(WireTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.registry = FakeRegistry()
        self.manifest = self.registry.tag("docker.io/library/nginx:1.27", OCI_INDEX, WholeBlob(MANIFEST))
        self.blob = self.registry.put(WholeBlob(DATA))
        self.port = self.listen(make_site(self.registry, reactor))

    async def wire(self) -> Wire:
        return await self.connect(self.port)

    def blob_path(self, digest: Digest | None = None) -> str:
        return f"/v2/x/blobs/{digest or self.blob}"


class AnswersTests(AnswersCase):
    async def test_the_base_says_what_this_is_and_asks_for_no_credentials(self) -> None:
        response = await (await self.wire()).ask("GET", "/v2/")
        headers = {"content-type": "application/json", "content-length": "2", **EVERY}
        self.assertEqual(response, Response(200, headers, b"{}"))

    async def test_a_manifest_has_exactly_the_headers_a_node_takes_its_descriptor_from(self) -> None:
        response = await (await self.wire()).ask("GET", NGINX)
        headers = {
            "content-type": OCI_INDEX,
            "content-length": str(len(MANIFEST)),
            "docker-content-digest": str(self.manifest),
            "etag": f'"{self.manifest}"',
            **EVERY,
        }
        self.assertEqual(response, Response(200, headers, MANIFEST))

    async def test_a_blob_has_exactly_its_headers_and_bytes(self) -> None:
        response = await (await self.wire()).ask("GET", self.blob_path())
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(len(DATA)),
            "docker-content-digest": str(self.blob),
            "etag": f'"{self.blob}"',
            "accept-ranges": "bytes",
            **EVERY,
        }
        self.assertEqual(response, Response(200, headers, DATA))

    async def test_head_is_get_without_the_body_for_every_kind_of_answer(self) -> None:
        wire = await self.wire()
        empty = self.registry.put(WholeBlob(b""))
        paths = ["/", "/x", "/v2/", NGINX, "/v2/x/manifests/y", "/v2/X/manifests/y", "/v2/x/tags/list", "/v2/x"]
        for path in [*paths, self.blob_path(), self.blob_path(empty), self.blob_path(UNKNOWN)]:
            get, head = await wire.ask("GET", path), await wire.ask("HEAD", path)
            self.assertEqual(head, Response(get.status, get.headers, b""), path)
            self.assertEqual(get.headers["content-length"], str(len(get.body)), path)
        self.assertEqual(wire.received, b"")

    async def test_head_of_a_manifest_does_not_ask_for_its_bytes(self) -> None:
        wire = await self.wire()
        await wire.ask("HEAD", NGINX)
        self.assertEqual(self.registry.opened, 0)
        await wire.ask("GET", NGINX)
        self.assertEqual(self.registry.opened, 1)

    async def test_an_empty_blob_is_whole(self) -> None:
        empty = self.registry.put(WholeBlob(b""))
        response = await (await self.wire()).ask("GET", self.blob_path(empty))
        self.assertEqual((response.status, response.headers["content-length"], response.body), (200, "0", b""))
        self.assertEqual(response.headers["content-type"], "application/octet-stream")

    async def test_a_range_is_that_part(self) -> None:
        response = await (await self.wire()).ask("GET", self.blob_path(), Range="bytes=10-19")
        self.assertEqual((response.status, response.body), (206, DATA[10:20]))
        self.assertEqual(response.headers["content-range"], f"bytes 10-19/{len(DATA)}")
        self.assertEqual(response.headers["content-length"], "10")

    async def test_several_ranges_are_one_multipart_answer(self) -> None:
        wire = await self.wire()
        response = await wire.ask("GET", self.blob_path(), Range="bytes=1000-1004,0-1,-2")
        self.assertEqual(response.status, 206)
        media_type, _, boundary = response.headers["content-type"].partition("; boundary=")
        self.assertEqual(media_type, "multipart/byteranges")
        expected = b""
        for start, stop in ((1000, 1005), (0, 2), (len(DATA) - 2, len(DATA))):
            told = f"bytes {start}-{stop - 1}/{len(DATA)}"
            head = f"\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {told}\r\n\r\n"
            expected += head.encode() + DATA[start:stop]
        self.assertEqual(response.body, expected + f"\r\n--{boundary}--\r\n".encode())
        self.assertNotIn("content-range", response.headers)
        self.assertEqual((await wire.ask("GET", "/v2/")).status, 200)

    async def test_a_part_that_fails_ends_the_connection(self) -> None:
        blob = PacedBlob(DATA)
        wire = await self.wire()
        path = self.blob_path(self.registry.put(blob))
        wire.transport.write(request("GET", path, Range="bytes=0-9,100-109"))
        length = int((await wire.head()).headers["content-length"])
        blob.fail(ContentGone("gone"))
        await wire.closed()
        self.assertLess(len(wire.received), length)
        self.assertRegex((await self.logged())[0], "^warn .* 206, aborted after ")

    async def test_the_rest_is_given_to_a_node_that_resumes(self) -> None:
        response = await (await self.wire()).ask(
            "GET", self.blob_path(), Range="bytes=1000-", If_Range=f'"{self.blob}"'
        )
        self.assertEqual((response.status, response.body), (206, DATA[1000:]))

    async def test_ranges_that_do_not_count_give_the_whole(self) -> None:
        wire = await self.wire()
        get = await wire.ask("GET", self.blob_path())
        for headers in ({"Range": "bytes=0-,4-5"}, {"Range": "lines=1-2"}, {"Range": "bytes=1-2", "If_Range": '"x"'}):
            self.assertEqual(await wire.ask("GET", self.blob_path(), **headers), get)
        head = await wire.ask("HEAD", self.blob_path(), Range="bytes=1-2")
        self.assertEqual((head.status, head.headers), (200, get.headers))

    async def test_a_range_past_the_end_is_416_and_tells_the_size(self) -> None:
        response = await (await self.wire()).ask("GET", self.blob_path(), Range=f"bytes={len(DATA)}-")
        self.assertEqual((response.status, response.headers["content-range"]), (416, f"bytes */{len(DATA)}"))
        self.assertEqual(code_of(response), "RANGE_INVALID")

    async def test_what_the_client_has_is_304_without_content(self) -> None:
        wire = await self.wire()
        for path, digest in ((NGINX, self.manifest), (self.blob_path(), self.blob)):
            for method in ("GET", "HEAD"):
                response = await wire.ask(method, path, If_None_Match=f'"x", "{digest}"')
                headers = {"docker-content-digest": str(digest), "etag": f'"{digest}"', **EVERY}
                self.assertEqual(response, Response(304, headers, b""))
        self.assertEqual((await wire.ask("GET", NGINX, If_None_Match='"x"')).status, 200)

    async def test_unknown_and_unparsable_things_are_told_apart(self) -> None:
        wire = await self.wire()
        for path, status, code in (
            ("/v2/x/manifests/none", 404, "MANIFEST_UNKNOWN"),
            ("/v2/x/manifests/.INVALID_MANIFEST_NAME", 404, "MANIFEST_UNKNOWN"),
            (self.blob_path(UNKNOWN), 404, "BLOB_UNKNOWN"),
            ("/v2/x/blobs/sha256:abc", 400, "DIGEST_INVALID"),
            ("/v2/X/manifests/y", 400, "NAME_INVALID"),
            ("/v2/../../etc/manifests/passwd", 400, "NAME_INVALID"),
            ("/v2/x/manifests/y?ns=a&ns=b", 400, "UNSUPPORTED"),
            ("/v2/x/blobs/uploads/a.b", 404, "BLOB_UPLOAD_UNKNOWN"),
            ("/v2/x", 404, "UNSUPPORTED"),
            ("/x", 404, "UNSUPPORTED"),
            ("/x/v2/", 404, "UNSUPPORTED"),
            ("//v2/", 404, "UNSUPPORTED"),
        ):
            response = await wire.ask("GET", path)
            self.assertEqual((response.status, code_of(response)), (status, code), path)

    async def test_methods_a_route_does_not_have_are_405_and_those_it_has_are_named(self) -> None:
        wire = await self.wire()
        for method, path, allow in (
            ("PUT", NGINX, "GET, HEAD"),
            ("DELETE", self.blob_path(), "GET, HEAD"),
            ("POST", "/v2/", "GET, HEAD"),
            ("BREW", "/", "GET, HEAD"),
            ("POST", "/v2/x/blobs/uploads/", ""),
            ("PATCH", "/v2/x/blobs/uploads/abc", ""),
            ("GET", "/v2/x/tags/list", ""),
            ("GET", f"/v2/x/referrers/{UNKNOWN}", ""),
            ("GET", "/v2/_catalog", ""),
        ):
            response = await wire.ask(method, path)
            self.assertEqual((response.status, response.headers["allow"].strip()), (405, allow), path)
            self.assertEqual(code_of(response), "UNSUPPORTED")

    async def test_needed_credentials_are_asked_for_and_then_handed_on(self) -> None:
        async def refuse(trace: Trace) -> None:
            if self.registry.authorizations[-1] is None:
                raise AuthenticationRequired("this image is private")

        self.registry.before = refuse
        wire = await self.wire()
        response = await wire.ask("HEAD", NGINX)
        self.assertEqual(response.status, 401)
        self.assertEqual(response.headers["www-authenticate"], 'Basic realm="k3dreg", charset="UTF-8"')
        header = "Basic " + base64.b64encode(b"me:secret").decode()
        self.assertEqual((await wire.ask("HEAD", NGINX, Authorization=header)).status, 200)
        self.assertEqual(self.registry.authorizations, [None, BasicAuth("me", "secret")])
        self.assertNotIn("secret", "".join(self.lines))
        self.assertNotIn(header, "".join(self.lines))

    async def test_work_that_goes_on_is_503_and_says_when_to_ask_again(self) -> None:
        async def wait(trace: Trace) -> None:
            raise NotYet("Docker is still pulling", after=5)

        self.registry.before = wait
        response = await (await self.wire()).ask("GET", NGINX)
        self.assertEqual((response.status, response.headers["retry-after"]), (503, "5"))

    async def test_a_fault_is_500_without_its_words_and_its_traceback_is_logged_once(self) -> None:
        async def fault(trace: Trace) -> None:
            raise ZeroDivisionError("inner words")

        self.registry.before = fault
        response = await (await self.wire()).ask("GET", NGINX)
        self.assertEqual(response.status, 500)
        self.assertNotIn(b"inner words", response.body)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_requests_sent_at_once_are_answered_in_order(self) -> None:
        wire = await self.wire()
        wire.transport.write(request("GET", NGINX) + request("HEAD", NGINX) + request("GET", "/v2/"))
        self.assertEqual((await wire.response()).body, MANIFEST)
        self.assertEqual((await wire.response(with_body=False)).headers["content-length"], str(len(MANIFEST)))
        self.assertEqual((await wire.response()).body, b"{}")

    async def test_the_head_of_a_blob_is_there_before_its_first_byte(self) -> None:
        blob = PacedBlob(DATA)
        wire = await self.wire()
        wire.transport.write(request("GET", self.blob_path(self.registry.put(blob))))
        head = await wire.head()
        self.assertEqual((head.status, head.headers["content-length"], wire.received), (200, str(len(DATA)), b""))
        blob.arrive(100)
        await wire.until(lambda: wire.received == DATA[:100])
        blob.arrive(len(DATA))
        await wire.until(lambda: wire.received == DATA)
        wire.received = b""
        self.assertEqual((await wire.ask("GET", "/v2/")).status, 200)

    async def test_a_body_that_no_route_takes_is_read_over_and_the_connection_lives_on(self) -> None:
        wire = await self.wire()
        body = b"x" * 300_000
        wire.transport.write(request("PUT", NGINX, Content_Length=str(len(body))) + body)
        self.assertEqual((await wire.response()).status, 405)
        self.assertEqual((await wire.ask("GET", "/v2/")).status, 200)


class LinesTests(AnswersCase):
    async def test_each_request_is_one_line_with_what_was_done(self) -> None:
        async def pull(trace: Trace) -> None:
            trace.source = "export"
            trace.step("pull 12.1s")
            trace.step("export 3.0s")

        self.registry.before = pull
        wire = await self.wire()
        await wire.ask("GET", NGINX)
        await wire.ask("GET", self.blob_path(), Range="bytes=0-9")
        await wire.ask("GET", "/v2/x/manifests/none")
        manifest, blob, missing = await self.logged(3)
        done = "export, after: pull 12.1s, export 3.0s"
        line = rf"^info 127\.0\.0\.1 GET docker\.io/library/nginx:1\.27 200 {done}, {len(MANIFEST)} bytes, \d\.\d\d\ds \[[0-9a-f]{{16}}\]$"
        self.assertRegex(manifest, line)
        self.assertRegex(blob, rf"GET x blob sha256:{self.blob.short} 206 {done}, 10 bytes, ")
        self.assertRegex(
            missing, r"GET x:none 404 .* bytes, \d\.\d\d\ds: no manifest x:none \(docker pull it\) \[[0-9a-f]{16}\]$"
        )

    async def test_pings_are_for_debug_alone(self) -> None:
        wire = await self.wire()
        await wire.ask("GET", "/v2/")
        await wire.ask("HEAD", NGINX)
        [line] = await self.logged(1)
        self.assertIn("HEAD docker.io/library/nginx:1.27 200", line)
        set_level("debug")
        self.addCleanup(set_level, "info")
        await wire.ask("GET", "/v2/")
        self.assertRegex((await self.logged(2))[1], "^debug 127.0.0.1 GET /v2/ 200, 2 bytes")

    async def test_a_failure_behind_k3dreg_is_a_warning(self) -> None:
        async def wait(trace: Trace) -> None:
            raise NotYet("Docker is\nstill \x1b[31mpulling", after=5)

        self.registry.before = wait
        await (await self.wire()).ask("GET", NGINX)
        [line] = await self.logged()
        self.assertRegex(
            line, r"^warn .* 503, \d+ bytes, \d\.\d{3}s: Docker is\\nstill \\x1b\[31mpulling \[[0-9a-f]{16}\]$"
        )

    async def test_what_did_not_parse_is_quoted(self) -> None:
        await (await self.wire()).ask("GET", "/v2/'%1b[2J%0a/manifests/x")
        [line] = await self.logged()
        self.assertIn("""GET "/v2/'%1b[2J%0a/manifests/x" 400, """, line)


class WaitingTests(AnswersCase):
    async def test_an_answer_that_takes_its_time_is_the_same_in_the_end(self) -> None:
        ready: Deferred[None] = Deferred()
        asked: Deferred[None] = Deferred()

        async def wait(trace: Trace) -> None:
            asked.callback(None)
            await ready

        self.registry.before = wait
        wire = await self.wire()
        wire.transport.write(request("GET", NGINX))
        await asked
        ready.callback(None)
        self.assertEqual((await wire.response()).body, MANIFEST)
